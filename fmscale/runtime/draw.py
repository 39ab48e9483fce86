"""Random numbers as a function of seed, purpose and counters: no generator's state exists that could be lost.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), word for word: a kernel that is
given `row_key` draws the same bits on a device. A sample's randomness depends on its number k alone, so it is the same
at any number of ranks and after any restart.
"""

import struct
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

FEW = 32
"""Words up to which Python's integers beat numpy's calls, which take 75 µs at least: 4 words take 7 µs, 32 take 39."""
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10
_Word = TypeVar("_Word", int, NDArray[Any])


def row_key(seed: int, purpose: str, *counters: int) -> int:
    """Key of 64 bits for one use of randomness, such as `row_key(seed, "crop", k)`: equal only for equal arguments.

    Seed and counters are whole numbers from 0 to 2^64 - 1.
    """
    return xxhash.xxh3_64_intdigest(struct.pack(f"<{len(counters) + 1}Q", seed, *counters) + purpose.encode())


def draw(seed: int, purpose: str, *counters: int, n: int) -> NDArray[np.float64]:
    """`n` uniform numbers from the open interval (0, 1), each with 32 random bits: (word + 1/2) / 2^32."""
    return (words(row_key(seed, purpose, *counters), n).astype(np.float64) + 0.5) * 2.0**-32


def words(key: int, n: int) -> NDArray[np.uint32]:
    """The first `n` words of Philox 4x32-10 under a key: block i has the counter (i, 0, 0, 0)."""
    blocks, halves = -(-n // 4), (key & _MASK, key >> 32)
    if n <= FEW:
        few = [word for i in range(blocks) for word in philox((i, 0, 0, 0), halves)]
        return np.array(few[:n], dtype=np.uint32)
    zeros = np.zeros(blocks, dtype=np.uint64)
    many = philox((np.arange(blocks, dtype=np.uint64), zeros, zeros, zeros), halves)
    return np.stack(many, 1).reshape(-1)[:n].astype(np.uint32)


def philox(counter: tuple[_Word, _Word, _Word, _Word], key: tuple[int, int]) -> tuple[_Word, _Word, _Word, _Word]:
    """One block of Philox 4x32-10: four words of 32 bits. Arrays of counters give arrays of words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3
