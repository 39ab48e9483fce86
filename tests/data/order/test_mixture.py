"""Mixtures: each source close to its weight at any prefix, from 1 to 20 sources, and their inverse."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.order.mixture import WEIGHT_ONE, Mixture, integer_weights
from fmscale.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "order_v1.json").read_text())
mixtures = st.lists(st.integers(1, 1000), min_size=1, max_size=6).map(integer_weights)


@settings(max_examples=60, deadline=None)
@given(mixtures, st.integers(0, 10**12))
def test_error_at_any_prefix(weights: tuple[int, ...], start: int) -> None:
    mixture, count = Mixture(weights), 5000
    before = mixture.taken(start)
    source, number = mixture.split(np.arange(start, start + count, dtype=np.uint64))
    for s, weight in enumerate(weights):
        mine = source == s
        assert np.array_equal(number[mine], before[s] + np.arange(mine.sum()))
        # ⌊start · weight⌋ in exact integers, so that errors show at any distance.
        whole, part = divmod(start * weight, WEIGHT_ONE)
        due = (part + np.arange(1, count + 1) * weight) / WEIGHT_ONE
        assert np.abs(before[s] - whole + np.cumsum(mine) - due).max() <= 1.7


@pytest.mark.parametrize(
    "parts", [[1] * 6, [3, 3, 3, 3, 3, 85], [1, 2, 3, 5, 8, 13, 21], [1000, 1], [0.7, 0.2, 0.1], [1] * 20]
)
def test_error_of_mixtures_that_are_hard_to_deal(parts: list[float]) -> None:
    weights = np.array(integer_weights(parts))
    source, _ = Mixture(weights.tolist()).split(np.arange(50_000, dtype=np.uint64))
    counts = np.cumsum(source[:, None] == np.arange(len(parts)), axis=0)
    due = np.arange(1, 50_001)[:, None] * (weights / WEIGHT_ONE)
    assert np.abs(counts - due).max() <= 1.5


@settings(max_examples=80, deadline=None)
@given(mixtures, st.lists(st.integers(0, 2**60), min_size=1, max_size=20))
def test_inverse_and_counts(weights: tuple[int, ...], offsets: list[int]) -> None:
    mixture = Mixture(weights)
    offset = np.array(offsets, dtype=np.uint64)
    source, number = mixture.split(offset)
    for s in np.unique(source).tolist():
        assert np.array_equal(mixture.offset(s, number[source == s]), offset[source == s])
    for at, s, count in zip(offsets, source.tolist(), number.tolist(), strict=True):
        taken, after = mixture.taken(at), mixture.taken(at + 1)
        assert sum(taken) == at
        assert taken[s] == count
        assert [b - a for a, b in zip(taken, after, strict=True)] == [s == i for i in range(len(weights))]


def test_scattered_samples_equal_those_in_sequence() -> None:
    mixture = Mixture(integer_weights([5, 3, 2, 2, 1, 7]))
    source, number = mixture.split(np.arange(100_000, dtype=np.uint64))
    pick = np.random.default_rng(0).permutation(100_000)[:3000]
    scattered = mixture.split(pick.astype(np.uint64))
    assert np.array_equal(scattered[0], source[pick])
    assert np.array_equal(scattered[1], number[pick])


def test_the_rarest_source_and_the_narrowest_tree() -> None:
    mixture = Mixture([1, WEIGHT_ONE - 1])
    first, second = (mixture.offset(0, np.array([i], dtype=np.uint64))[0] for i in (0, 1))
    assert second - first == WEIGHT_ONE
    assert mixture.split(np.array([first], dtype=np.uint64))[0].tolist() == [0]
    deep = Mixture([1] + [2**i for i in range(32)])
    offset = np.arange(10**6, 10**6 + 500, dtype=np.uint64)
    source, number = deep.split(offset)
    for s in np.unique(source).tolist():
        assert np.array_equal(deep.offset(s, number[source == s]), offset[source == s])


def test_equal_weights_take_turns() -> None:
    source, _ = Mixture(integer_weights([1, 1])).split(np.arange(8, dtype=np.uint64))
    assert sorted(source[:2].tolist()) == [0, 1]
    assert source.tolist() == source[:2].tolist() * 4


@pytest.mark.parametrize("case", GOLDEN["mixture"], ids=lambda case: str(case["weights"]))
def test_golden_mixtures(case: dict[str, list[int]]) -> None:
    source, number = Mixture(case["weights"]).split(np.array(case["offset"], dtype=np.uint64))
    assert source.tolist() == case["source"]
    assert number.tolist() == case["number"]


@pytest.mark.parametrize("parts", [[1.0], [0.7, 0.2, 0.1], [1 / 3] * 3, [1e-9, 1.0], [0.1] * 7])
def test_integer_weights(parts: list[float]) -> None:
    weights = integer_weights(parts)
    assert sum(weights) == WEIGHT_ONE
    for weight, part in zip(weights, parts, strict=True):
        assert abs(weight - part / sum(parts) * WEIGHT_ONE) <= 1


@pytest.mark.parametrize("parts", [[], [0.0], [-1.0, 2.0], [1.0, 0.0], [float("inf")], [float("nan")], [1e-12, 1.0]])
def test_weights_that_cannot_be(parts: list[float]) -> None:
    with pytest.raises(ConfigError):
        integer_weights(parts)
