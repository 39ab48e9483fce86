"""Mixture of sources: sample of a stage → source and number of the sample there, and back.

The sources are the leaves of a Huffman tree over their weights. A node with weight W deals its samples r = 0, 1 … to
its two sides so that the left side, with weight V, has ⌊(r·V + ⌊W/2⌋)/W⌋ of the first r (docs/order.md, "Mixtures").
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.errors import ConfigError

WEIGHT_ONE = 2**32
"""Sum of the weights of a stage."""


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Positive integers in proportion to `weights`, with the sum 2^32 (largest remainder, then first).

    Raises ConfigError for an empty list, and for a weight that is not positive, not finite, or rounded to 0.
    """
    total = sum(weights)
    if not weights or not 0 < min(weights) <= total < float("inf"):
        raise ConfigError(
            "weights must be positive numbers", found=list(weights), remedy="Leave a source with weight 0 out."
        )
    shares = [weight / total * WEIGHT_ONE for weight in weights]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda s: (whole[s] - shares[s], s))
    missing = WEIGHT_ONE - sum(whole)
    for turn in range(abs(missing)):
        whole[by_remainder[turn % len(weights)]] += 1 if missing > 0 else -1
    if min(whole) < 1:
        raise ConfigError("a weight is below 2^-32 of the sum", found=min(weights), remedy="Leave it out.")
    return tuple(whole)


class _Node(NamedTuple):
    """Two sides of the tree; a side that is a number is a source."""

    weight: int
    left_weight: int
    left: "_Node | int"
    right: "_Node | int"

    def left_of(self, r: int) -> int:
        """c(r): samples of the left side among the node's first r."""
        return (r * self.left_weight + self.weight // 2) // self.weight


class Mixture:
    """Deal of one stage's samples to its sources."""

    def __init__(self, weights: Sequence[int]) -> None:
        """`weights` are positive integers with the sum 2^32 (see `integer_weights`)."""
        self.sources = len(weights)
        # Equal weights merge in the order of sources, then of merging.
        heap: list[tuple[int, int, _Node | int]] = [(w, s, s) for s, w in enumerate(weights)]
        heapq.heapify(heap)
        for number in range(self.sources, 2 * self.sources - 1):
            light, _, left = heapq.heappop(heap)
            heavy, _, right = heapq.heappop(heap)
            heapq.heappush(heap, (light + heavy, number, _Node(light + heavy, light, left, right)))
        self._root = heap[0][2]

    def split(self, offset: U64) -> tuple[NDArray[np.intp], U64]:
        """(source, number of the sample in its source) of samples, counted from the stage's beginning."""
        source = np.zeros(offset.shape, dtype=np.intp)
        number = offset
        if isinstance(self._root, _Node):
            number = np.empty_like(offset)
            _deal(self._root, offset, np.arange(len(offset)), source, number)
        return source, number

    def taken(self, offset: int) -> tuple[int, ...]:
        """Samples of each source among the stage's first `offset`."""
        counts = [0] * self.sources
        left: list[tuple[_Node | int, int]] = [(self._root, offset)]
        while left:
            node, r = left.pop()
            if isinstance(node, int):
                counts[node] = r
            else:
                count = node.left_of(r)
                left += [(node.left, count), (node.right, r - count)]
        return tuple(counts)

    def offset(self, source: int, number: U64) -> U64:
        """Places of a source's samples, counted from the stage's beginning: the inverse of `split`."""
        offset = _offset(self._root, source, number)
        assert offset is not None, "each source is a leaf"
        return offset


def _deal(node: _Node | int, r: U64, which: NDArray[np.intp], source: NDArray[np.intp], number: U64) -> None:
    """Write source and number of the samples `which`; `r` has their numbers among the node's samples."""
    if isinstance(node, int):
        source[which] = node
        number[which] = r
        return
    # c(r) in 64 bits: with r = a·W + b it is a·V + ⌊(b·V + ⌊W/2⌋)/W⌋, and W <= 2^32.
    weight, share = np.uint64(node.weight), np.uint64(node.left_weight)
    whole = r // weight
    part = (r - whole * weight) * share + np.uint64(node.weight // 2)
    count = part // weight
    # The left side gets sample r if c(r + 1) > c(r).
    is_left = part - count * weight + share >= weight
    count += whole * share
    for side, members in ((node.left, np.flatnonzero(is_left)), (node.right, np.flatnonzero(~is_left))):
        if members.size:
            rank = count[members] if side is node.left else r[members] - count[members]
            _deal(side, rank, which[members], source, number)


def _rank(node: _Node, is_left: bool, number: U64) -> U64:
    """Numbers, among the node's samples, of the samples `number` of one of its sides."""
    weight, half = np.uint64(node.weight), np.uint64(node.weight // 2)
    if is_left:
        # The least r with (r + 1)·V + ⌊W/2⌋ >= (number + 1)·W; with number = a·V + b, b + 1 in 1 … V.
        share = np.uint64(node.left_weight)
        whole = number // share
        part = (number - whole * share + np.uint64(1)) * weight - half
        return whole * weight + (part + share - np.uint64(1)) // share - np.uint64(1)
    # The least r with (r + 1)·(W − V) − ⌊W/2⌋ > number·W.
    share = np.uint64(node.weight - node.left_weight)
    whole = number // share
    return whole * weight + ((number - whole * share) * weight + half) // share


def _offset(node: _Node | int, source: int, number: U64) -> U64 | None:
    """Numbers, among the node's samples, of the samples `number` of a source; None if it is not below the node."""
    if isinstance(node, int):
        return number if node == source else None
    for side, is_left in ((node.left, True), (node.right, False)):
        below = _offset(side, source, number)
        if below is not None:
            return _rank(node, is_left, below)
    return None
