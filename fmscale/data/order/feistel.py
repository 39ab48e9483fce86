"""Keyed permutations of {0 … n−1} by arithmetic alone, so that no order is ever stored or built.

A permutation of n numbers is an alternating Feistel network on the pairs (left, right) of a grid of left_size ×
right_size ≥ n cells, with cycle walking for the few cells above n (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002; docs/order.md, "Permutations"). All numbers are uint64 and wrap modulo 2^64.
"""

from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fmscale.errors import ConfigError

U64 = NDArray[np.uint64]
"""One-dimensional array of unsigned 64-bit integers; some functions also take a single entry for all numbers."""

NamedTupleT = TypeVar("NamedTupleT", bound=tuple[Any, ...])

MAX_DOMAIN = 2**62
"""Largest n; keeps left_size · 2^32 and every sum below 2^64."""
ROUNDS = 8
"""Feistel rounds: Grain's header recommends 8 for its index shuffle (and runs 4)."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: U64) -> U64:
    """Scramble 64-bit numbers one to one: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    mixed: U64 = x ^ (x >> _S31)
    return mixed


# Two odd multipliers a round: the SplitMix64 stream that starts at 0.
_MULTIPLIERS = tuple(mix(np.arange(1, 2 * ROUNDS + 1, dtype=np.uint64) * _GAMMA) | np.uint64(1))


def seed_key(seed: int) -> int:
    """Key of a source: mix(seed). Raises ConfigError unless 0 <= seed < 2^64."""
    if not 0 <= seed < 2**64:
        raise ConfigError("a seed is a number of 64 bits", found=seed, remedy="Use 0 <= seed < 2^64.")
    return int(mix(np.array([seed], dtype=np.uint64))[0])


def epoch_key(source_key: U64, epoch: U64) -> U64:
    """Key of one epoch: mix(seed_key + γ·(epoch + 1)), γ = 0x9E3779B97F4A7C15."""
    return mix(source_key + (epoch + np.uint64(1)) * _GAMMA)


def stream_key(key: U64, number: U64) -> U64:
    """Number i of the SplitMix64 stream of an epoch's key: mix(epoch_key + γ·(i + 1)).

    The order uses i = 0 for the permutation of units, i = 1 + 1024·window + lane inside a lane.
    """
    return mix(key + (number + np.uint64(1)) * _GAMMA)


class Domain(NamedTuple):
    """Sizes of permutations: a single entry, or an entry for each number."""

    n: U64
    """Count of the numbers {0 … n−1}."""
    left: U64
    """Rows of the grid."""
    right: U64
    """Columns of the grid; left · right >= n."""


@lru_cache(maxsize=1024)
def domain(n: int) -> Domain:
    """The grid for n numbers, 1 <= n <= 2^62.

    Of the 32 row counts from ⌈√n⌉ on (without counts that leave a single column) it takes the count that wastes fewest
    cells, and the smallest of equal counts.
    """
    if not 1 <= n <= MAX_DOMAIN:
        raise ValueError(f"a permutation needs 1 <= n <= 2^62, found {n}")
    root = isqrt(n - 1) + 1
    rows = range(root, max(root, min(root + 31, 2 * root - 2)) + 1)
    left = min(rows, key=lambda a: (a * -(-n // a), a))
    return Domain(*np.array([[n], [left], [-(-n // left)]], dtype=np.uint64))


def permute(x: U64, n: int | Domain, key: U64 | int, *, inverse: bool = False) -> U64:
    """The places of numbers x < n in the permutation that `key` names.

    `key` and the fields of a `Domain` have a single entry, or for each number the entry of its own permutation. x and
    the result are one-dimensional.
    """
    # Arrays of one entry instead of scalars: numpy warns when a scalar wraps.
    sizes = Domain(*map(np.atleast_1d, domain(n) if isinstance(n, int) else n))
    keys = np.atleast_1d(np.asarray(key, dtype=np.uint64))
    out = _network(x, sizes, keys, inverse)
    outside = np.flatnonzero(out >= sizes.n)
    while outside.size:
        part = select(sizes, outside)
        again = _network(out[outside], part, keys if keys.size == 1 else keys[outside], inverse)
        out[outside] = again
        outside = outside[again >= part.n]
    return out


def unpermute(x: U64, n: int | Domain, key: U64 | int) -> U64:
    """The inverse of `permute`, for the same n and key."""
    return permute(x, n, key, inverse=True)


def select(fields: NamedTupleT, which: NDArray[np.intp] | NDArray[np.bool_]) -> NamedTupleT:
    """The entries `which` of every field; a field of a single entry holds for all numbers and stays."""
    return type(fields)(*(field if np.size(field) == 1 else field[which] for field in fields))


def _network(x: U64, sizes: Domain, key: U64, inverse: bool) -> U64:
    _, rows, columns = sizes
    left = x // columns
    right = x - left * columns
    for i in range(ROUNDS - 2, -1, -2) if inverse else range(0, ROUNDS, 2):
        if inverse:
            _add(right, columns - _pad(left, key, i + 1, columns), columns)
            _add(left, rows - _pad(right, key, i, rows), rows)
        else:
            _add(left, _pad(right, key, i, rows), rows)
            _add(right, _pad(left, key, i + 1, columns), columns)
    left *= columns
    left += right
    return left


def _pad(side: U64, key: U64, number: int, size: U64) -> U64:
    """Round function: 32 well mixed bits of (side, key), scaled into [0, size) by the high product."""
    t: U64 = side + key
    t *= _MULTIPLIERS[2 * number]
    t ^= t >> _S32
    t *= _MULTIPLIERS[2 * number + 1]
    t >>= _S32
    t *= size
    t >>= _S32
    return t


def _add(side: U64, pad: U64, size: U64) -> None:
    """Set side to (side + pad) mod size, for pad <= size. A sum below `size` wraps to a huge difference, so the smaller
    of sum and difference is the remainder.
    """
    side += pad
    np.minimum(side, np.subtract(side, size, out=pad), out=side)
