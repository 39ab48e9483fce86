import math
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fmscale.errors import ConfigError
from fmscale.infer.sampling import RANKED, Sampling, choose, penalised, probabilities
from fmscale.runtime.draw import draw

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=0.9, top_p=0.6),
    Sampling(temperature=1.3, top_k=9, top_p=0.8),
    Sampling(temperature=1.0, top_p=1e-9),
    Sampling(temperature=1.2, min_p=0.1),
    Sampling(temperature=1.2, top_k=9, top_p=0.9, min_p=0.2),
]


def logits(B: int = 4, V: int = 30) -> torch.Tensor:
    return torch.randn(B, V, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("sampling", SETTINGS)
def test_probabilities_are_those_of_transformers(sampling: Sampling) -> None:
    given = logits()
    wanted = TemperatureLogitsWarper(sampling.temperature)(None, given.double())
    if sampling.top_k:
        wanted = TopKLogitsWarper(sampling.top_k)(None, wanted)
    if sampling.top_p:
        wanted = TopPLogitsWarper(sampling.top_p)(None, wanted)
    if sampling.min_p:
        ids: Any = torch.zeros(1, 1, dtype=torch.long)
        wanted = MinPLogitsWarper(sampling.min_p)(ids, wanted)
    got = probabilities(given, sampling)
    torch.testing.assert_close(got / got.sum(-1, keepdim=True), wanted.softmax(-1))


def test_a_nucleus_larger_than_what_is_ranked_at_first_is_whole() -> None:
    given = torch.randn(3, 3 * RANKED, generator=torch.Generator().manual_seed(1)) * 0.1
    given[1, 7] = 30.0  # a nucleus of one token beside large ones
    wanted = TopPLogitsWarper(0.9)(None, given.double()).softmax(-1)
    got = probabilities(given, Sampling(temperature=1.0, top_p=0.9))
    assert (got > 0).sum(-1).tolist() == (wanted > 0).sum(-1).tolist()
    torch.testing.assert_close(got / got.sum(-1, keepdim=True), wanted)


def test_tokens_as_likely_as_the_last_that_stays_stay_too() -> None:
    given = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert (probabilities(given, Sampling(temperature=1.0, top_k=2)) > 0).tolist() == [[True, True, True, False]]
    assert (probabilities(given, Sampling(temperature=1.0, top_p=0.7)) > 0).tolist() == [[True, True, True, False]]


def test_the_penalty_is_that_of_transformers() -> None:
    given, before = logits(), torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(2))
    seen = torch.zeros(4, 30, dtype=torch.bool).scatter(1, before, True)
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(before, given.clone())
    torch.testing.assert_close(penalised(given, seen, 1.3), wanted)


def test_draws_have_the_probabilities() -> None:
    sampling = Sampling(temperature=1.0, top_k=4, seed=3)
    given = logits(1, 12).expand(10_000, -1)
    drawn, logprobs = choose(given, sampling, torch.from_numpy(sampling.draws(5, 0, 10_000)))
    wanted = probabilities(given[:1], sampling)[0]
    wanted = wanted / wanted.sum()
    for share, prob in zip((torch.bincount(drawn, minlength=12) / 10_000).tolist(), wanted.tolist(), strict=True):
        assert abs(share - prob) < 5 * math.sqrt(prob * (1 - prob) / 10_000) + 1e-12
    torch.testing.assert_close(logprobs, wanted[drawn].log())


def test_a_draw_follows_from_seed_key_sample_and_place() -> None:
    one = Sampling(temperature=1.0, seed=7).draws(3, 2, 50)
    assert one.tolist() == [draw(7, "generate", 3, 2, n=i + 1)[i] for i in range(50)]
    others = [
        Sampling(temperature=1.0, seed=8).draws(3, 2, 50),
        *(Sampling(seed=7).draws(*k, 50) for k in ((2, 3), (3, 1))),
    ]
    assert all((one != other).all() for other in others)


def test_zero_temperature_takes_the_likeliest() -> None:
    given = logits()
    assert torch.equal(choose(given, Sampling(), None)[0], given.argmax(-1))
    assert choose(torch.zeros(1, 5), Sampling(), None)[0].item() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.5},
        {"repetition": 0.0},
        {"seed": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} cannot be this"):
        Sampling(**wrong)
