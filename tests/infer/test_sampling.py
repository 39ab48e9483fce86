import math
from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fmscale.errors import ConfigError
from fmscale.infer.sampling import Sampling, choose, probabilities

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=0.9, top_p=0.6),
    Sampling(temperature=1.3, top_k=9, top_p=0.8),
    Sampling(temperature=1.0, top_p=1e-9),
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
    ranked, ids = probabilities(given, sampling)
    got = torch.zeros_like(ranked).scatter(1, ids, ranked)
    torch.testing.assert_close(got, wanted.softmax(-1))


def test_draws_have_the_probabilities() -> None:
    sampling = Sampling(temperature=1.0, top_k=4, seed=3)
    given = logits(1, 12).expand(500, -1)
    generators = sampling.generators(0, 500)
    drawn = torch.cat([choose(given, sampling, generators) for _ in range(20)])
    ranked, ids = probabilities(given[:1], sampling)
    share = torch.bincount(drawn, minlength=12)[ids[0]] / len(drawn)
    for got, wanted in zip(share.tolist(), ranked[0].tolist(), strict=True):
        assert abs(got - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / len(drawn)) + 1e-12


def test_a_sequence_draws_the_same_in_any_batch() -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    given = logits(6)
    together = choose(given, sampling, sampling.generators(0, 6))
    for i in range(6):
        assert choose(given[i : i + 1], sampling, sampling.generators(i, 1)) == together[i]
    other = Sampling(temperature=1.0, seed=8)
    assert not torch.equal(choose(given, other, other.generators(0, 6)), together)


def test_zero_temperature_takes_the_likeliest() -> None:
    given = logits()
    assert torch.equal(choose(given, Sampling(), []), given.argmax(-1))
    assert choose(torch.zeros(1, 5), Sampling(), []).item() == 0


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} cannot be this"):
        Sampling(**wrong)
