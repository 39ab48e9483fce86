"""Which source each sample of a stage comes from, and which of that source's samples it is.

Samples are dealt in frames of Q. With cumulative weights F_s in units of 2^-32, source s has taken
C_s(f) = ⌊f·Q·F_s/2^32⌋ − ⌊f·Q·F_{s−1}/2^32⌋ samples before frame f, so its share never drifts; inside a frame
with quotas q_s its i-th sample comes at (2i+1)/(2·q_s) of the frame, equal places by order of sources. At any
prefix each source is within 1.7 samples of its weight. Integers only.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.errors import ConfigError

WEIGHT_ONE = 2**32
"""Sum of the weights of a stage."""
FRAME = 4096
"""Q by default: sources with a weight down to 0.00025 are allowed, and a frame's table takes 40 KB."""
MAX_FRAME = 2**16
_S32 = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
_ONE = np.uint64(1)


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights in proportion to these, as integers with the sum 2^32 (largest remainder, then first).

    Raises ConfigError for an empty list, a negative or infinite weight, or a sum of 0.
    """
    total = sum(weights)
    if not weights or not 0 < total < float("inf") or min(weights) < 0:
        raise ConfigError("weights must be non-negative numbers with a positive sum", found=list(weights))
    shares = [weight / total * WEIGHT_ONE for weight in weights]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda s: (whole[s] - shares[s], s))
    missing = WEIGHT_ONE - sum(whole)
    for turn in range(abs(missing)):
        whole[by_remainder[turn % len(weights)]] += 1 if missing > 0 else -1
    return tuple(whole)


class Pattern(NamedTuple):
    """The order of sources inside a frame with certain quotas; arrays of Q entries."""

    source: NDArray[np.uint16]
    """Source of each slot."""
    number: NDArray[np.uint32]
    """Samples of the same source before the slot, in the frame."""


@lru_cache(maxsize=48)
def pattern(quotas: tuple[int, ...]) -> Pattern:
    """The pattern of a frame with these quotas."""
    source = np.repeat(np.arange(len(quotas), dtype=np.uint16), quotas)
    number = np.concatenate([np.arange(quota, dtype=np.uint32) for quota in quotas])
    # Places of different size differ by at least 1/(4·Q²) >= 2^-34: 40 bits tell them apart, 57 hold them.
    doubled = 2 * np.repeat(np.array(quotas, dtype=np.int64), quotas)
    place = ((2 * number.astype(np.int64) + 1) << 40) // doubled
    order = np.argsort(place, kind="stable")
    return Pattern(source[order], number[order])


class Mixture:
    """How the samples of one stage are dealt to its sources."""

    def __init__(self, weights: Sequence[int], frame: int = FRAME) -> None:
        """Integer weights with the sum 2^32; `frame` is Q, at most 65,536."""
        if sum(weights) != WEIGHT_ONE or min(weights) < 0 or not 1 <= frame <= MAX_FRAME:
            raise ConfigError(
                "a mixture needs weights with the sum 2^32 and 1 <= Q <= 65,536", found=(list(weights), frame)
            )
        self.sources = len(weights)
        self.frame = frame
        self._weights = tuple(weights)
        self._edges = np.array([0, *np.cumsum(weights)], dtype=np.uint64)

    def split(self, offset: U64) -> tuple[NDArray[np.intp], U64]:
        """(source, number of the sample in its source) of samples, counted from the stage's beginning."""
        if self.sources == 1:
            return np.zeros(offset.shape, dtype=np.intp), offset
        frame = offset // np.uint64(self.frame)
        slot = (offset - frame * np.uint64(self.frame)).astype(np.intp)
        frames, which = _distinct(frame)
        taken, quotas = self._frames(frames)
        table, patterns = _patterns(quotas)
        at = table[which] * self.frame + slot
        source = np.concatenate([p.source for p in patterns])[at].astype(np.intp)
        number = np.concatenate([p.number for p in patterns])[at]
        return source, taken.ravel()[which * self.sources + source] + number

    def taken(self, offset: int) -> tuple[int, ...]:
        """Samples of each source among the stage's first `offset`."""
        frame, slot = divmod(offset, self.frame)
        taken, quotas = self._frames(np.array([frame], dtype=np.uint64))
        begun = np.bincount(pattern(tuple(quotas[0].tolist())).source[:slot], minlength=self.sources)
        return tuple(int(a) + int(b) for a, b in zip(taken[0], begun, strict=True))

    def offset(self, source: int, number: U64) -> U64:
        """Where samples of a source come, counted from the stage's beginning: the inverse of `split`.

        The source's weight must not be 0.
        """
        if self.sources == 1:
            return number
        # A float's guess, corrected with exact counts until it is the frame that holds the sample.
        per_frame = self._weights[source] * self.frame / WEIGHT_ONE
        frame = np.floor(number / per_frame).astype(np.int64)
        while True:
            frame = np.maximum(frame, 0)
            taken, quotas = self._frames(frame.astype(np.uint64))
            ahead = number.astype(np.int64) - taken[:, source].astype(np.int64)
            off = (ahead < 0) | (ahead >= quotas[:, source].astype(np.int64))
            if not off.any():
                break
            step = np.trunc(ahead / per_frame).astype(np.int64)
            nudge = np.where(ahead < 0, -1, 1)
            frame = np.where(off, frame + np.where(step == 0, nudge, step), frame)
        # Slots before (2i+1)/(2·q_s): of source t where 2j+1 is below x = (2i+1)·q_t/q_s, or at it if t < s.
        odd, quota = 2 * ahead.astype(np.uint64) + _ONE, quotas[:, source]
        slot = ahead.astype(np.uint64)
        for other in range(self.sources):
            scaled = odd * quotas[:, other]
            if other < source:
                slot += (scaled // quota + _ONE) >> _ONE
            elif other > source:
                slot += ((scaled + quota - _ONE) // quota) >> _ONE
        out: U64 = frame.astype(np.uint64) * np.uint64(self.frame) + slot
        return out

    def _frames(self, frames: U64) -> tuple[U64, U64]:
        """(samples of each source before each frame, quotas inside it), shape (frames, sources)."""
        low = self._share(frames)
        return low, self._share(frames + _ONE) - low

    def _share(self, frames: U64) -> U64:
        # ⌊g·F/2^32⌋ in 64 bits: with g = a·2^32 + b it is a·F + ⌊b·F/2^32⌋, and F <= 2^32.
        g = (frames * np.uint64(self.frame))[:, None]
        cut: U64 = (g >> _S32) * self._edges + ((g & _LOW) * self._edges >> _S32)
        return cut[:, 1:] - cut[:, :-1]


def _distinct(frame: U64) -> tuple[U64, NDArray[np.intp]]:
    """The frames that occur (or, where they lie close together, all between), and which each is."""
    if not frame.size:
        return frame, np.empty(0, dtype=np.intp)
    low, high = int(frame.min()), int(frame.max())
    if high - low < max(8, frame.size // 64):
        return np.arange(low, high + 1, dtype=np.uint64), (frame - np.uint64(low)).astype(np.intp)
    frames, which = np.unique(frame, return_inverse=True)
    return frames, which


def _patterns(quotas: U64) -> tuple[NDArray[np.intp], list[Pattern]]:
    """Which pattern each frame has, and the patterns. Frames of a mixture have few different quotas."""
    if len(quotas) <= 8:
        return np.arange(len(quotas)), [pattern(tuple(row)) for row in quotas.tolist()]
    # Between frames a cumulative quota differs by 0 or 1: one bit each names the pattern.
    bits = np.cumsum(quotas, axis=1)[:, :-1]
    bits -= bits.min(axis=0)
    packed = np.packbits(bits.astype(np.bool_), axis=1)
    names = np.ascontiguousarray(packed).view(f"V{packed.shape[1]}")[:, 0]
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    return which, [pattern(tuple(row)) for row in quotas[first].tolist()]
