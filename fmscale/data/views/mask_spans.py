"""Tokens of a commit outside masks, computed from the masked spans alone."""

import numpy as np

from fmscale.data.order.feistel import U64


class KeptRanges:
    """The kept tokens of one split of one commit: all tokens outside the masked spans.

    Memory and search time grow with the number of spans alone. A token has a position among all tokens of the split in
    the commit; a kept token also has a kept position among the kept tokens.
    """

    def __init__(self, tokens: int, starts: U64, stops: U64) -> None:
        """`tokens` of the split; masked spans [starts, stops) in any order, which may overlap."""
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], np.maximum.accumulate(stops[order]) if len(order) else stops
        first = np.ones(len(order), dtype=np.bool_)
        first[1:] = starts[1:] > stops[:-1]
        groups = np.flatnonzero(first)
        self._starts = starts[groups]
        self._stops = stops[np.append(groups[1:], len(order)) - 1] if len(order) else stops
        # Masked tokens up to the end of each span, and the kept position at which each span lies.
        self._masked = np.cumsum(self._stops - self._starts, dtype=np.uint64)
        self._places = self._stops - self._masked
        self.tokens = tokens - (int(self._masked[-1]) if len(groups) else 0)
        """Kept tokens."""

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Runs of tokens with kept positions [start, stop), in order: (position of the first token, tokens)."""
        if not len(self._places):
            return [(start, stop - start)]
        span = int(np.searchsorted(self._places, np.uint64(start), side="right"))
        out: list[tuple[int, int]] = []
        while start < stop:
            skipped = int(self._masked[span - 1]) if span else 0
            end = min(stop, int(self._places[span])) if span < len(self._places) else stop
            out.append((start + skipped, end - start))
            start, span = end, span + 1
        return out

    def positions(self, places: U64) -> U64:
        """Positions of the tokens with these kept positions: the inverse of `place`."""
        if not len(self._places):
            return places
        span = np.searchsorted(self._places, places, side="right")
        skipped: U64 = np.concatenate((np.zeros(1, dtype=np.uint64), self._masked))[span]
        return places + skipped

    def place(self, position: U64) -> U64:
        """Number of kept tokens before each position; for a kept token, its kept position."""
        if not len(self._places):
            return position
        span = np.searchsorted(self._starts, position, side="right")
        # Inside a span, the kept position of the token that follows the span.
        clear = np.maximum(position, np.where(span > 0, self._stops[span - 1], 0))
        masked = np.concatenate((np.zeros(1, dtype=np.uint64), self._masked))[span]
        out: U64 = clear - masked
        return out
