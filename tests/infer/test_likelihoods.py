"""Log-likelihoods: right, the same bits at any batch, and contexts read once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fmscale.config import ModelConfig
from fmscale.errors import ConfigError
from fmscale.infer.likelihoods import Likelihood, Pair, loglikelihoods, rolling_windows
from fmscale.models import Decoder, build

MODEL = ModelConfig(num_layers=2, dim=64, num_heads=4, num_kv_heads=2, max_seq_len=48, init_std=0.1)
V = 101


def made(**changes: Any) -> Decoder:
    model = build(ModelConfig(**{**vars(MODEL), **changes}), vocab_size=V)
    model.init_weights(torch.Generator().manual_seed(3))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return made()


def some_pairs(contexts: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(contexts)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        size = int(torch.randint(least, most, (), generator=generator))
        return tuple(torch.randint(V, (size,), generator=generator).tolist())

    return [Pair(context, tokens(1, 9)) for context in (tokens(1, 60) for _ in range(contexts)) for _ in range(4)]


@torch.no_grad()
def by_hand(model: Decoder, pair: Pair) -> tuple[float, bool]:
    """A pair alone: the last max_seq_len + 1 tokens, without the last as input."""
    tokens = torch.tensor((*pair.context, *pair.continuation)[-(model.config.max_seq_len + 1) :])
    rows = model.head(model(tokens[None, :-1]))[0, -len(pair.continuation) :].double().log_softmax(-1)
    wanted = torch.tensor(pair.continuation)
    return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(-1) == wanted).all())


def close(found: list[Likelihood], wanted: list[tuple[float, bool]]) -> None:
    assert [one.greedy for one in found] == [greedy for _, greedy in wanted]
    assert max(abs(one.nats - nats) for one, (nats, _) in zip(found, wanted, strict=True)) <= 1e-5


@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"softcap": 4.0}, {"num_kv_heads": 4}])
def test_each_pair_has_the_likelihood_that_it_has_alone(changes: dict[str, Any]) -> None:
    model, pairs = made(**changes), some_pairs(5)
    pairs += [Pair(tuple(range(70)), (1, 2, i)) for i in range(2)]  # longer than the model reads
    wanted = [by_hand(model, pair) for pair in pairs]
    close(loglikelihoods(model, pairs), wanted)
    close(loglikelihoods(model, pairs, shared=False), wanted)


def test_results_have_the_same_bits_at_any_batch_and_number_of_threads(model: Decoder) -> None:
    pairs = [*some_pairs(6), *(Pair((i,) * (i + 1), (5,)) for i in range(3))]  # the last have 1 to 3 rows alone
    whole = loglikelihoods(model, pairs)
    assert [loglikelihoods(model, pairs, batch=batch, threads=t) for batch, t in ((1, 1), (3, 2), (9, 1))] == [
        whole
    ] * 3


def test_contexts_that_begin_alike_share_their_begin(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, few = tuple(range(33)), some_pairs(8)
    pairs = [Pair((*begin, *pair.context[:7]), pair.continuation) for pair in few]
    pairs += [Pair((*begin, 1, 2, i), (3, i)) for i in range(3)] + few[:4]
    whole = loglikelihoods(model, pairs)
    close(whole, [by_hand(model, pair) for pair in pairs])
    assert [loglikelihoods(model, pairs, batch=batch) for batch in (1, 4)] == [whole] * 2
    read = tokens_read(monkeypatch)
    loglikelihoods(model, [Pair((*begin, 1, 2, i), (3, i)) for i in range(7)])
    assert sum(read) == 64  # 35 of the common begin, 7 times (i, 3), and 15 fillers


def test_a_greedy_continuation_is_told(model: Decoder) -> None:
    context = (5, 6, 7)
    with torch.no_grad():
        likeliest = int(model.head(model(torch.tensor([context])))[0, -1].argmax())
    found = loglikelihoods(model, [Pair(context, (likeliest,)), Pair(context, ((likeliest + 1) % V,))])
    assert [one.greedy for one in found] == [True, False]


def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward from now on."""
    read: list[int] = []
    inner = Decoder.forward

    def counted(self: Decoder, tokens_BT: Tensor, **options: object) -> Tensor:
        read.append(tokens_BT.numel())
        return inner(self, tokens_BT, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "forward", counted)
    return read


def test_a_context_is_read_once_for_its_continuations(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tokens_read(monkeypatch)
    pairs = [Pair(tuple(range(40)), (i, i + 1)) for i in range(24)]
    loglikelihoods(model, pairs)
    assert sum(read) == 64  # 40 tokens of the context, 24 of the continuations but for their last
    read.clear()
    loglikelihoods(model, pairs, shared=False)
    assert sum(read) == 1024  # 24 times 41, and 40 fillers


def test_windows_predict_every_token_once_as_lm_eval_cuts_them() -> None:
    # lm_eval.utils.get_rolling_token_windows with make_disjoint_window, context_len 1
    assert rolling_windows(range(10), 99, 4) == [
        ((99,), (0, 1, 2, 3)),
        ((3,), (4, 5, 6, 7)),
        ((5, 6, 7), (8, 9)),
    ]
    assert rolling_windows([], 99, 4) == []
    assert rolling_windows([7], 99, 4) == [((99,), (7,))]


def refused() -> Iterator[tuple[Pair, str]]:
    yield Pair((), (1,)), "context of pair 0 has no tokens"
    yield Pair((1,), ()), "continuation of pair 0 has no tokens"
    yield Pair((1,), (1,) * 49), "longer than the model's max_seq_len: found '49 > 48'"
    yield Pair((1,), (V,)), "token ids that the model does not have"


@pytest.mark.parametrize(("pair", "message"), list(refused()))
def test_pairs_that_cannot_be_scored_are_refused(model: Decoder, pair: Pair, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loglikelihoods(model, [pair])
