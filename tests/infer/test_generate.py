import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.infer import Completion, Sampling, generate
from fmscale.models import Decoder
from tests.models.models import VOCAB, small, tokens

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
    found = generate(model, PROMPTS, max_tokens=12, eos=eos, slots=3, on_token=lambda i, t: told.append((i, t)))
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
