"""Tiers: sources of chunks between the node cache and the store, such as the caches of other nodes. A tier may lack any
chunk, have wrong bytes, fail or go away: every chunk is verified, and the next source serves the others.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np

from fmscale.store.digest import crc32c
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers.cache_file import consecutive

logger = logging.getLogger(__name__)


class Tier(Protocol):
    """A source of chunks. Several threads call it at once. A read waits for it, so it limits the time of each call."""

    def read(
        self, ref: ObjectRef, first: int, chunks: int, buffer: memoryview, *, next_use: int, expected: np.ndarray
    ) -> np.ndarray:
        """Fill `buffer` with those of the chunks [first, first + chunks) that the tier has, each at its place. Returns
        a bool a chunk, True for a chunk that is there; nothing writes to `buffer` after that.

        `expected` has the crc32c of each chunk: a tier that fetches absent chunks for later keeps no wrong bytes.
        `next_use` is the sample number of the chunks' next use. An absent chunk or object is no error.
        """

    def advise(self, ref: ObjectRef, first: int, chunks: int, next_use: int) -> None:
        """Prepare for a read of these chunks soon, without a wait."""

    def keeps(self, ref: ObjectRef, region: int) -> bool:
        """True if the cache of this node keeps the object's region number `region`; False if other nodes own it."""


@dataclass(kw_only=True)
class TierUse:
    """Counts of one tier."""

    served: int = 0
    """Chunks that the tier gave with their recorded bytes."""
    dropped: int = 0
    """Chunks that it gave with other bytes."""
    failed: int = 0
    """Calls that raised an error."""


class Tiers:
    """Tiers in the order in which they are asked; safe across threads."""

    def __init__(self, tiers: Sequence[Tier] = ()) -> None:
        self._tiers = tuple(tiers)
        self.uses = tuple(TierUse() for _ in self._tiers)
        self._lock = Lock()

    def __bool__(self) -> bool:
        return bool(self._tiers)

    def read(
        self, ref: ObjectRef, first: int, count: int, buffer: memoryview, next_use: int = 0
    ) -> list[tuple[int, int]]:
        """Fill `buffer` with the chunks that a tier has with their recorded bytes; returns the runs (first, count) of
        all others. A tier is asked for the chunks that the tiers before it did not serve.
        """
        missing = [(first, count)]
        for number in range(len(self._tiers)):
            asked, missing = missing, []
            for low, chunks in asked:
                part = chunk_part(ref, first, buffer, low, chunks)
                missing += self._read_from(number, ref, low, chunks, part, next_use)
        return missing

    def advise(self, ref: ObjectRef, first: int, chunks: int, next_use: int) -> None:
        """Announce a coming read to every tier."""
        for number, tier in enumerate(self._tiers):
            try:
                tier.advise(ref, first, chunks, next_use)
            except Exception as error:
                self._failed(number, error)

    def keeps(self, ref: ObjectRef, region: int) -> bool:
        """True unless a tier leaves the region to other nodes."""
        for number, tier in enumerate(self._tiers):
            try:
                if not tier.keeps(ref, region):
                    return False
            except Exception as error:
                self._failed(number, error)
        return True

    def _read_from(
        self, number: int, ref: ObjectRef, first: int, count: int, buffer: memoryview, next_use: int
    ) -> list[tuple[int, int]]:
        """Ask one tier; returns the runs that it does not serve well."""
        expected = ref.crc32c[first : first + count]
        try:
            there = self._tiers[number].read(ref, first, count, buffer, next_use=next_use, expected=expected)
            good = np.array(there, dtype=bool)
            if good.shape != (count,):
                raise ValueError(f"an answer of shape {good.shape} for {count} chunks")
        except Exception as error:
            # Any error of a tier counts as absence: training must not depend on it.
            self._failed(number, error)
            return [(first, count)]
        given = np.flatnonzero(good)
        for i in given.tolist():
            good[i] = crc32c(buffer[i * ref.chunk_bytes : (i + 1) * ref.chunk_bytes]) == expected[i]
        served = int(good.sum())
        with self._lock:
            self.uses[number].served += served
            self.uses[number].dropped += len(given) - served
        return consecutive(first + np.flatnonzero(~good))

    def _failed(self, number: int, error: Exception) -> None:
        with self._lock:
            self.uses[number].failed += 1
            told = self.uses[number].failed > 1
        if not told:
            tier, reason = type(self._tiers[number]).__name__, f"{type(error).__name__}: {error}"
            logger.warning("tier %d (%s) failed, and the next source serves; told once: %s", number, tier, reason)


def chunk_part(ref: ObjectRef, first: int, buffer: memoryview, low: int, count: int) -> memoryview:
    """The bytes of chunks [low, low + count) in a buffer of chunks from `first` on."""
    return buffer[(low - first) * ref.chunk_bytes : (low - first + count) * ref.chunk_bytes]
