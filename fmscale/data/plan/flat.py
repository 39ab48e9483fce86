"""Flat forwards: the samples of a step dealt to nodes, ranks and forwards by their sizes, and by nothing else.

A forward is one concatenation of whole samples, at most `forward_tokens` long. Samples go to nodes by slot, as rows
do, so that a node mostly reads units of its own lanes. What a node has above 1.05 times its share moves to the node
with the least load: it is read there by its batch alone. Inside a node the longest sample goes first, to the forward
with the fewest tokens (Graham, "Bounds on multiprocessing timing anomalies", 1969: at most 4/3 of the best). Every rank
works this out for all nodes, so nothing is exchanged.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

ROUND_TOKENS = 64
"""A forward's length is a multiple of this, so that compiled code and kernels meet few shapes."""
NODE_EXCESS = 1.05
"""Most that a node may have of its share of a step's tokens, where samples can be moved."""

Sizes = NDArray[np.int64]


def rounded(tokens: int) -> int:
    """Length of a forward with that many tokens."""
    return -(-max(tokens, 1) // ROUND_TOKENS) * ROUND_TOKENS


def deal(sizes: Sizes, nodes: Sequence[int], forward_tokens: int) -> list[list[list[int]]]:
    """Samples of each forward of each rank: indexes into `sizes`, all ranks with the same number of forwards.

    `sizes` are the tokens of a step's samples in slot order, none above `forward_tokens`; `nodes` the ranks of each
    node, in the order of the ranks. A forward may be empty: its rank runs a weightless document.
    """
    capacity = forward_tokens // ROUND_TOKENS * ROUND_TOKENS
    shares = level(sizes, by_slot(len(sizes), nodes), nodes)
    longest_first = [share[np.argsort(-sizes[share], kind="stable")].tolist() for share in shares]
    lengths: list[int] = sizes.tolist()
    forwards = max(
        1, *(-(-int(sizes[share].sum()) // (ranks * capacity)) for share, ranks in zip(shares, nodes, strict=True))
    )
    while True:
        dealt = [
            _pack(share, lengths, ranks, forwards, capacity) for share, ranks in zip(longest_first, nodes, strict=True)
        ]
        if all(node is not None for node in dealt):
            return [rank for node in dealt if node is not None for rank in node]
        forwards += 1


def by_slot(samples: int, nodes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Slots of each node: as many for each of its ranks as `assign` gives to a rank."""
    ends = np.cumsum([0, *nodes]) * samples // sum(nodes)
    return [np.arange(first, stop) for first, stop in pairwise(ends.tolist())]


def level(sizes: Sizes, shares: Sequence[NDArray[np.int64]], nodes: Sequence[int]) -> list[NDArray[np.int64]]:
    """The shares with as few samples moved as bring every node to at most `NODE_EXCESS` times its part of the tokens.

    The longest sample moves that neither leaves its node below its part nor brings the other above the limit; where
    there is none, the shortest. A share stays above the limit where its samples are too long to be moved.
    """
    if len(nodes) == 1:
        return list(shares)
    part = sizes.sum() * np.asarray(nodes) / sum(nodes)
    load = np.array([sizes[share].sum() for share in shares], dtype=np.float64)
    kept = [share.tolist() for share in shares]
    for _ in range(len(sizes)):
        giver, taker = int((load / part).argmax()), int((load / part).argmin())
        if load[giver] <= NODE_EXCESS * part[giver]:
            break
        room = NODE_EXCESS * part[taker] - load[taker]
        own = sizes[kept[giver]]
        fits = np.flatnonzero((own <= room) & (own <= load[giver] - part[giver]) & (own > 0))
        if not fits.size:
            fits = np.flatnonzero((own <= room) & (own > 0))
            fits = fits[own[fits] == own[fits].min()] if fits.size else fits
        if not fits.size:
            break
        chosen = kept[giver].pop(int(fits[own[fits].argmax()]))
        kept[taker].append(chosen)
        load[giver] -= sizes[chosen]
        load[taker] += sizes[chosen]
    return [np.array(share, dtype=np.int64) for share in kept]


def _pack(
    longest_first: list[int], lengths: list[int], ranks: int, forwards: int, capacity: int
) -> list[list[list[int]]] | None:
    """Samples of each forward of each rank of a node; None where they do not fit."""
    bins: list[list[int]] = [[] for _ in range(ranks * forwards)]
    heap = [(0, number) for number in range(len(bins))]
    for sample in longest_first:
        load, number = heap[0]
        if load + lengths[sample] > capacity:
            return None
        heapq.heapreplace(heap, (load + lengths[sample], number))
        bins[number].append(sample)
    return [bins[rank::ranks] for rank in range(ranks)]
