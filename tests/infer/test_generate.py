from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fmscale.errors import ConfigError, DataError
from fmscale.infer import Completion, Sampling, generate
from fmscale.infer.products import packed as packed_products
from fmscale.infer.sampling import penalised, probabilities
from fmscale.models import Decoder
from tests.models.models import VOCAB, packed, small, tokens

PROMPTS = [tokens(length, seed=length).tolist() for length in (6, 1, 11, 3)]


@torch.no_grad()
def plainly(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation that reads all tokens again for each new token."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(model.head(model(torch.tensor([row])))[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("kind", [{}, {"window": 4}, {"tied": True, "num_kv_heads": 1}])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_prompts_of_different_lengths_go_on_as_alone_and_without_a_cache(kind: dict[str, int], batch: int) -> None:
    model = small(**kind)
    found = generate(model, PROMPTS, max_tokens=12, slots=batch)
    assert [completion.tokens for completion in found] == [plainly(model, prompt, 12) for prompt in PROMPTS]
    assert {completion.stop for completion in found} == {"length"}


def test_a_sequence_ends_at_its_eos_and_the_others_go_on() -> None:
    model = small()
    free = [completion.tokens for completion in generate(model, PROMPTS, max_tokens=12)]
    eos = free[0][4]
    cut = [one[: one.index(eos)] if eos in one else one for one in free]
    assert len({len(one) for one in cut}) > 1, "no prompt ends before another"
    found = generate(model, PROMPTS, max_tokens=12, eos=eos)
    assert [completion.tokens for completion in found] == cut
    assert [completion.stop for completion in found] == ["eos" if eos in one else "length" for one in free]


def test_tokens_are_told_as_they_come() -> None:
    model = small()
    told: list[tuple[int, int | None]] = []
    eos = generate(model, PROMPTS[:1], max_tokens=12)[0].tokens[4]
    found = generate(model, PROMPTS, max_tokens=12, eos=eos, slots=3, on_token=lambda i, t, _: told.append((i, t)))
    for number, completion in enumerate(found):
        assert [token for i, token in told if i == number] == [*completion.tokens, None]
    assert [i for i, _ in told[:3]] == [0, 1, 2], "the sequences of a batch do not grow together"


def test_draws_do_not_depend_on_the_batch_and_follow_the_seed() -> None:
    model = small()
    sampling = Sampling(temperature=0.8, top_k=20, seed=5)

    def drawn(batch: int, sampling: Sampling = sampling) -> list[Completion]:
        return generate(model, PROMPTS, max_tokens=10, sampling=sampling, slots=batch)

    assert drawn(1) == drawn(3) == drawn(16)
    assert drawn(4, Sampling(temperature=0.8, top_k=20, seed=6)) != drawn(4)
    eos = drawn(1)[0].tokens[3]
    ended = generate(model, PROMPTS, max_tokens=10, sampling=sampling, eos=eos)
    assert len(ended[0].tokens) < len(ended[1].tokens)
    for one, free in zip(ended, drawn(1), strict=True):
        assert one.tokens == free.tokens[: len(one.tokens)]
    twice = generate(model, [PROMPTS[0], PROMPTS[0]], max_tokens=10, sampling=sampling)
    assert twice[0] != twice[1]


def test_ids_that_only_pad_the_vocabulary_are_never_chosen() -> None:
    model = small()
    free = generate(model, PROMPTS, max_tokens=12, sampling=Sampling(temperature=1.5))
    assert max(max(one.tokens) for one in free) >= 40
    kept = generate(model, PROMPTS, max_tokens=12, sampling=Sampling(temperature=1.5), vocabulary=40)
    assert max(max(one.tokens) for one in kept) < 40


def test_the_model_is_left_as_it_was() -> None:
    model = small(dropout=0.5)
    calm = generate(model, PROMPTS, max_tokens=5)
    model.train()
    assert generate(model, PROMPTS, max_tokens=5) == calm
    assert model.training


def test_what_cannot_be_generated_is_refused() -> None:
    model = small(max_seq_len=16)
    generate(model, [[1] * 10], max_tokens=6)
    with pytest.raises(ConfigError, match="longer than the model") as refused:
        generate(model, [[1], [1] * 10], max_tokens=7)
    assert (refused.value.found, refused.value.remedy) == ("10 + 7 > 16", "Ask for at most 6 new tokens.")
    with pytest.raises(ConfigError, match="Shorten the prompt"):
        generate(model, [[1] * 16], max_tokens=1)
    with pytest.raises(ConfigError, match="Prompt 1 has no tokens"):
        generate(model, [[1], []], max_tokens=1)
    with pytest.raises(ConfigError, match="ids that the model does not have"):
        generate(model, [[1, VOCAB]], max_tokens=1)
    with pytest.raises(ConfigError, match="nothing to generate"):
        generate(model, [[1]], max_tokens=0)
    assert generate(model, [], max_tokens=1) == []


def many() -> list[list[int]]:
    """Prompts of mixed lengths, one beyond a page of the cache."""
    return [tokens(length, seed=length).tolist() for length in (6, 1, 11, 3, 70, 30, 2)]


@pytest.mark.parametrize("kind", [{}, {"window": 5, "num_kv_heads": 4}, {"softcap": 4.0, "hidden_dim": 72}])
def test_tokens_and_logprobs_have_the_same_bits_at_any_slots_order_and_capacity(kind: dict[str, Any]) -> None:
    model = small(max_seq_len=20_000, **kind)
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=3)
    prompts, keys = many(), list(range(7))

    def found(order: list[int], limits: list[int], slots: int) -> dict[int, list[Completion]]:
        done = generate(
            model, [prompts[i] for i in order], keys=[keys[i] for i in order], max_tokens=[limits[i] for i in order],
            sampling=sampling, samples=3, logprobs=True, slots=slots,
        )  # fmt: skip
        return {i: done[3 * place : 3 * place + 3] for place, i in enumerate(order)}

    limits = [40, 12, 30, 70, 9, 25, 12]
    alone = {i: found([i], limits, 1)[i] for i in keys}
    assert len({tuple(one.tokens) for group in alone.values() for one in group}) == 21
    for order, slots in ((keys, 16), (keys[::-1], 5), ([3, 0, 6, 2, 5, 1, 4], 2), (keys, 64)):
        assert found(order, limits, slots) == alone
    # a companion's limit makes the cache hold 17,000 tokens a row
    eos = alone[0][0].tokens[5]
    settings: dict[str, Any] = {"sampling": sampling, "eos": eos, "logprobs": True}
    small_cache = generate(model, [prompts[0]], max_tokens=40, **settings)
    large_cache = generate(model, [prompts[0], prompts[4]], keys=[0, 0], max_tokens=[17_000, 40], **settings)
    assert large_cache[:1] == small_cache


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = small()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        generate(model, PROMPTS, max_tokens=3)


def test_a_prompt_is_read_once_for_its_samples_and_the_shared_prefix_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, read = small(), []
    right = Decoder.forward

    def forward(self: Decoder, tokens_BT: torch.Tensor, **more: Any) -> torch.Tensor:
        if more.get("cu_seqlens") is not None:
            read.append(more["cu_seqlens"].diff().tolist())
        return right(self, tokens_BT, **more)

    monkeypatch.setattr(Decoder, "forward", forward)
    sampling = Sampling(temperature=1.0)
    prompts = [[5, 6, 7, 8, i] for i in range(3)]
    wanted = generate(model, prompts, max_tokens=9, sampling=sampling, samples=4, slots=12, logprobs=True)
    assert read == [[5, 5, 5]]
    read.clear()
    assert generate(model, prompts, max_tokens=9, sampling=sampling, samples=4, slots=3, logprobs=True) == wanted
    assert [length for lengths in read for length in lengths] == [5, 5, 5]
    read.clear()
    shared = generate(model, prompts, max_tokens=9, sampling=sampling, samples=4, slots=3, shared=4, logprobs=True)
    assert sum(length for lengths in read for length in lengths) == 4 + 3
    assert [one.tokens for one in shared] == [one.tokens for one in wanted]
    for one, other in zip(shared, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    whole = generate(model, [[5, 6, 7]] * 2, max_tokens=3, shared=3)
    assert whole == generate(model, [[5, 6, 7]] * 2, max_tokens=3)


@pytest.mark.parametrize(("dtype", "most", "mean"), [(torch.float32, 1e-5, 2e-6), (torch.bfloat16, 0.1, 2e-3)])
def test_the_sampler_has_the_log_probabilities_of_the_packed_training_forward(
    dtype: torch.dtype, most: float, mean: float
) -> None:
    """By training's own loss over the whole sequences, packed; the initial weights have the usual size."""
    model = small(dim=128, num_layers=4, init_std=0.02, max_seq_len=256).to(dtype)
    prompts = many()
    done = generate(model, prompts, max_tokens=60, sampling=Sampling(temperature=1.0), samples=2, logprobs=True)
    rows = [torch.tensor(prompts[n // 2] + one.tokens) for n, one in enumerate(done)]
    arguments = packed(*rows)
    hidden = model(**arguments)
    labels = torch.cat([torch.cat((row[1:], torch.tensor([-100]))) for row in rows])[None]
    _, _, losses = model.head(hidden, labels=labels)
    parts = losses[0].split([len(row) for row in rows])
    gaps = []
    for n, (one, part) in enumerate(zip(done, parts, strict=True)):
        trained = -part[len(prompts[n // 2]) - 1 : -1]
        gaps.append((torch.tensor(one.logprobs) - trained).abs())
    gap = torch.cat(gaps)
    assert len(gap) == 14 * 60
    assert float(gap.max()) <= most
    assert float(gap.mean()) <= mean


def test_an_answer_ends_before_a_stop_string_that_lies_over_tokens() -> None:
    model = small()

    def decode(ids: Sequence[int]) -> str:
        return "".join(f"<{i}>" for i in ids)

    (free,) = generate(model, PROMPTS[:1], max_tokens=12, decode=decode)
    assert free.text == decode(free.tokens)
    stop = decode(free.tokens[3:6])[1:-1]
    told: list[tuple[int, int | None, str]] = []
    (cut,) = generate(
        model, PROMPTS[:1], max_tokens=12, decode=decode, stop=["nowhere", stop], on_token=lambda *one: told.append(one)
    )
    assert (cut.stop, cut.tokens, cut.text) == ("stop", free.tokens[:6], decode(free.tokens[:3]) + "<")
    assert [token for _, token, _ in told] == [*free.tokens[:6], None]
    assert "".join(text for *_, text in told) == cut.text
    with pytest.raises(ConfigError, match="Stop strings"):
        generate(model, PROMPTS[:1], max_tokens=2, stop=["x"])


def test_end_tokens_are_several_and_wait_for_min_tokens() -> None:
    model = small()
    (free,) = generate(model, PROMPTS[:1], max_tokens=12)
    ends = [free.tokens[2], free.tokens[7]]
    (cut,) = generate(model, PROMPTS[:1], max_tokens=12, eos=ends, logprobs=True)
    assert (cut.stop, cut.end) == ("eos", ends[0] if ends[0] not in free.tokens[:2] else ends[1])
    assert len(cut.logprobs) == len(cut.tokens) + 1 == len(cut.drawn_logprobs)
    (late,) = generate(model, PROMPTS[:1], max_tokens=12, eos=ends, min_tokens=6)
    assert len(late.tokens) >= 6
    assert not set(late.tokens[:6]) & set(ends)


def test_drawn_logprobs_are_of_the_distribution_after_penalty_temperature_and_truncation() -> None:
    model = small()
    sampling = Sampling(temperature=0.7, top_k=5, min_p=0.02, repetition=1.3, seed=4)
    (one,) = generate(model, PROMPTS[:1], max_tokens=8, sampling=sampling, logprobs=True)
    row = list(PROMPTS[0])
    for token, own, drawn in zip(one.tokens, one.logprobs, one.drawn_logprobs, strict=True):
        with torch.no_grad():
            logits = model.head(model(torch.tensor([row])))[:, -1]
        assert own == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-5)
        seen = torch.zeros(1, VOCAB, dtype=torch.bool)
        seen[0, row] = True
        shares = probabilities(penalised(logits, seen, 1.3), sampling)[0]
        assert drawn == pytest.approx(float((shares[token] / shares.sum()).log()), abs=1e-4)
        row.append(token)
    assert len(set(one.drawn_logprobs)) > 1


def test_settings_that_contradict_each_other_are_refused() -> None:
    model = small()
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": [1, 2]}, "max_tokens has another number"),
        ({"keys": [1]}, "keys has another number"),
        ({"eos": [VOCAB]}, "end token is none of the model's"),
        ({"shared": 2}, "Prompt 1 does not begin with the shared tokens"),
        ({"samples": 0}, "samples cannot be this"),
        ({"slots": 0}, "slots cannot be this"),
        ({"min_tokens": 9}, "min_tokens cannot be this"),
    ]
    for wrong, message in mistakes:
        with pytest.raises(ConfigError, match=message):
            generate(model, [[1, 2, 3], [1, 3], [2]], **{"max_tokens": 3, **wrong})


def test_a_plain_block_takes_few_calls_and_another_block_its_own_forward() -> None:
    for kind, lean in (({}, True), ({"softcap": 3.0, "window": 4}, True), ({"dropout": 0.1}, True)):
        model = small(**kind)
        with packed_products(model):
            assert all("forward" in vars(block) for block in model.layers) is lean
        assert not any("forward" in vars(module) for module in model.modules())
    model = small()
    wanted = generate(model, PROMPTS, max_tokens=6)
    model.layers[0].get_submodule("attention").__dict__["note"] = 3.0  # an attribute that plain blocks do not have
    with packed_products(model):
        assert ["forward" in vars(block) for block in model.layers] == [False, True]
    assert generate(model, PROMPTS, max_tokens=6) == wanted
