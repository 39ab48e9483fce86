"""Permutations by arithmetic: bijective, invertible, keyed, and uniform enough for a shuffle."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.order.feistel import (
    MAX_DOMAIN,
    Domain,
    domain,
    epoch_key,
    mix,
    permute,
    seed_key,
    stream_key,
    unpermute,
)
from fmscale.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "order_v1.json").read_text())


def numbers(values: object) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize("n", [*range(1, 66), 127, 128, 1000, 4097, 100_003])
def test_one_to_one_and_inverted(n: int) -> None:
    x = np.arange(n, dtype=np.uint64)
    for key in (0, 1, 2**64 - 1):
        y = permute(x, n, key)
        assert np.array_equal(np.sort(y), x)
        assert np.array_equal(unpermute(y, n, key), x)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, MAX_DOMAIN), st.integers(0, 2**64 - 1))
def test_inverse_on_any_domain(data: st.DataObject, n: int, key: int) -> None:
    x = numbers(data.draw(st.lists(st.integers(0, n - 1), max_size=20)))
    y = permute(x, n, key)
    assert (y < np.uint64(n)).all()
    assert len(np.unique(y)) == len(np.unique(x))
    assert np.array_equal(unpermute(y, n, key), x)


@given(st.integers(1, MAX_DOMAIN))
def test_the_grid_fits_tightly(n: int) -> None:
    left, right = int(domain(n).left[0]), int(domain(n).right[0])
    assert left * right >= n
    assert (left * right - n) <= n**0.5 + 1
    assert n < 4 or min(left, right) >= 2, "one column would only be rotated"
    assert max(left, right) <= 2**31 + 32


@pytest.mark.parametrize("n", [0, -1, MAX_DOMAIN + 1])
def test_domains_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="1 <= n"):
        domain(n)


def test_a_key_and_a_size_of_its_own_for_each_number() -> None:
    n = numbers([5, 1000, 7, 10**12, 1, 33])
    x = numbers([4, 999, 0, 10**12 - 1, 0, 32])
    keys = mix(np.arange(6, dtype=np.uint64))
    fields = [domain(int(size)) for size in n]
    joined = Domain(*(np.concatenate(column) for column in zip(*fields, strict=True)))
    alone = [int(permute(x[i : i + 1], int(n[i]), int(keys[i]))[0]) for i in range(6)]
    together = permute(x, joined, keys)
    assert together.tolist() == alone
    assert np.array_equal(unpermute(together, joined, keys), x)


@pytest.mark.parametrize("n", [64, 100, 1000])
def test_places_and_distances_are_even_over_keys(n: int) -> None:
    trials = 100_000
    keys = mix(np.arange(trials, dtype=np.uint64))
    for i, j in ((0, 1), (3, n // 2), (n - 2, n - 1)):
        a = permute(np.full(trials, i, dtype=np.uint64), n, keys).astype(np.int64)
        b = permute(np.full(trials, j, dtype=np.uint64), n, keys).astype(np.int64)
        for counts in (np.bincount(a, minlength=n), np.bincount((b - a) % n, minlength=n)[1:]):
            chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
            degrees = len(counts) - 1
            assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5


def test_keys_are_the_documented_function() -> None:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    key = seed_key((seed_key(7) + golden * (3 + 1)) & mask)
    assert int(epoch_key(numbers([seed_key(7)]), numbers([3]))[0]) == key
    assert int(stream_key(numbers([key]), numbers([5]))[0]) == seed_key((key + golden * 6) & mask)
    # The first output of SplitMix64 seeded with 0, from Vigna's reference implementation.
    assert seed_key(golden) == 0xE220A8397B1DCDAF
    assert int(mix(numbers([golden]))[0]) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed: int) -> None:
    with pytest.raises(ConfigError, match="64 bits"):
        seed_key(seed)


@pytest.mark.parametrize("case", GOLDEN["permute"], ids=lambda case: str(case["n"]))
def test_golden_permutations(case: dict[str, list[int]]) -> None:
    got = permute(numbers(case["x"]), int(case["n"]), int(case["key"]))  # type: ignore[call-overload]
    assert got.tolist() == case["y"]
