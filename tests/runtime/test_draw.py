"""Randomness by key: the paper's vectors, our own golden values, and statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.runtime.draw import FEW, draw, philox, row_key, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_vectors_of_random123(counter: tuple[int, int, int, int], key: tuple[int, int], expected: str) -> None:
    assert " ".join(f"{word:08x}" for word in philox(counter, key)) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 3 * FEW))
def test_few_and_many_are_the_same_words(key: int, n: int) -> None:
    many = words(key, 4 * FEW)
    assert words(key, n).tolist() == many[:n].tolist()
    last = philox((FEW - 1, 0, 0, 0), (key & (2**32 - 1), key >> 32))
    assert many[-4:].tolist() == list(last)


def test_golden_values() -> None:
    """Stored runs go on with these: they never change."""
    assert row_key(0, "crop", 7) == 0x510E8BCA8D224F
    assert draw(1, "flip", 2**63, 5, n=3).tolist() == [0.4026569618145004, 0.4511022617807612, 0.9738795309094712]


def test_every_argument_counts() -> None:
    keys = {row_key(*one) for one in ((0, "a", 1), (1, "a", 0), (0, "b", 1), (0, "a", 1, 0), (0, "a"), (1, "a"))}
    assert len(keys) == 6


def test_the_numbers_are_uniform_and_independent_over_samples() -> None:
    by_sample = np.array([draw(3, "crop", k, n=4) for k in range(20_000)])
    assert 0 < by_sample.min() < by_sample.max() < 1
    assert np.abs(by_sample.mean(0) - 0.5).max() < 4 * 12**-0.5 / 20_000**0.5
    assert np.abs(np.corrcoef(by_sample.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(by_sample[1:, 0], by_sample[:-1, 0])[0, 1]) < 0.03
