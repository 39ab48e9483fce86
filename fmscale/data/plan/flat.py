"""Flat forwards: the samples of a step dealt to nodes, ranks and forwards by their sizes, and by nothing else.

A forward is one concatenation of whole samples, at most `forward_tokens` long. A sample is at home on the node of its
lane, so that no other node reads its unit. What a node has above 1.05 times its share moves to the node with the least
load: it is read there by its batch alone. Inside a node the longest sample goes first, to the forward
with the fewest tokens (Graham, "Bounds on multiprocessing timing anomalies", 1969: at most 4/3 of the best). Every rank
works this out for all nodes, so nothing is exchanged.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan, Samples
from fmscale.errors import DataError

ROUND_TOKENS = 64
"""A forward's length is a multiple of this, so that compiled code and kernels meet few shapes."""
NODE_EXCESS = 1.05
"""Most that a node may have of its share of a step's tokens, where samples can be moved."""
MOST_PAIRED = 24
"""Most samples of a node of which pairs are offered in an exchange: 300 offers."""

Sizes = NDArray[np.int64]
SizesOf = Callable[[Plan, int, U64], Sizes]
"""Lengths of the samples of a source's rows."""


class FlatShare(NamedTuple):
    """A rank's part of every step."""

    rank: int
    """Place among the data-parallel ranks."""
    nodes: tuple[int, ...]
    """Ranks of each node, in the order of the ranks."""
    forward_tokens: int
    """Most tokens of a forward."""

    @property
    def node(self) -> int:
        """The rank's node."""
        return int(np.searchsorted(np.cumsum(self.nodes), self.rank, side="right"))


class FlatStep(NamedTuple):
    """The samples of a step in slot order, and those of a rank."""

    step: int
    after: int
    """First sample of the next step."""
    samples: Samples
    lost: NDArray[np.bool_]
    """Samples without content, because a ban or quarantine took their rows too late for a substitute."""
    lengths: Sizes
    """Upper bounds of their lengths."""
    forwards: list[list[int]]
    """Samples of each forward of this rank: indexes into `samples`."""
    near: NDArray[np.bool_]
    """Samples at home on this node: its ranks read their units; others are read alone."""


def assign_flat(
    plan: Plan, schedule: BatchSchedule, share: FlatShare, sizes_of: SizesOf, *, k: int, steps: int
) -> Iterator[FlatStep]:
    """The samples and forwards of `steps` steps from sample `k` on.

    The samples of a step are sorted by (lane, source, k).
    """
    first = schedule.step_of(k)
    bounds = schedule.kappa(np.arange(first, first + steps + 1))
    bounds[0] = k  # after a change of the batch size, the step of k keeps its samples from k on
    counts = np.diff(bounds)
    samples = plan.samples(np.arange(bounds[0], bounds[-1], dtype=np.uint64))
    by_slot_of = np.lexsort((samples.k, samples.source, samples.lane, np.repeat(np.arange(steps), counts)))
    samples = Samples._make(column[by_slot_of] for column in samples)
    lost = plan.lost(samples)
    lengths = np.empty(len(samples.k), dtype=np.int64)
    for source in np.unique(samples.source).tolist():
        part = samples.source == source
        lengths[part] = sizes_of(plan, source, samples.row[part])
    lanes = np.array([order.lanes for order in plan.orders])[samples.source]
    at = 0
    for number, count in enumerate(counts.tolist()):
        cut = slice(at, at + count)
        at += count
        home = homes(samples.lane[cut], lanes[cut], share.nodes)
        yield FlatStep(
            step=first + number,
            after=int(bounds[number + 1]),
            samples=Samples._make(column[cut] for column in samples),
            lost=lost[cut],
            lengths=lengths[cut],
            forwards=deal(lengths[cut], home, share.nodes, share.forward_tokens)[share.rank],
            near=home == share.node,
        )


def rounded(tokens: int) -> int:
    """Length of a forward with that many tokens."""
    return -(-max(tokens, 1) // ROUND_TOKENS) * ROUND_TOKENS


def deal(sizes: Sizes, home: NDArray[np.int64], nodes: Sequence[int], forward_tokens: int) -> list[list[list[int]]]:
    """Samples of each forward of each rank: indexes into `sizes`, all ranks with the same number of forwards.

    `sizes` and `home` are the tokens and the node of each sample of a step; `nodes` the ranks of each node, in the
    order of the ranks. A forward may be empty: its rank runs a weightless document. Raises DataError for a sample that
    fits into no forward: a run can go on with shorter forwards than it began with.
    """
    capacity = forward_tokens // ROUND_TOKENS * ROUND_TOKENS
    if sizes.max(initial=0) > capacity:
        raise DataError(
            "a sample is longer than a forward",
            found=f"{sizes.max()} tokens, a forward takes {capacity}",
            remedy="Raise batch.forward_tokens, or begin another run whose spec cuts or drops long samples.",
        )
    shares = level(sizes, [np.flatnonzero(home == node) for node in range(len(nodes))], nodes)
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


def homes(lane: NDArray[np.uint32], lanes: NDArray[np.int64], nodes: Sequence[int]) -> NDArray[np.int64]:
    """Node of each sample of a step, from its lane and the number of lanes of its source.

    A rank has a run of lanes, so a unit is read by one node; where slots decided, as for rows, a tenth of the units was
    read by two of 8 nodes. In a source with fewer lanes than ranks the slots decide: a node reads the units of the
    samples that it has, rather than many samples alone.
    """
    ranks = sum(nodes)
    by_slot = np.arange(len(lane)) * ranks // max(len(lane), 1)
    rank = np.where(lanes >= ranks, lane.astype(np.int64) * ranks // lanes, by_slot)
    return np.repeat(np.arange(len(nodes)), nodes)[rank]


def level(sizes: Sizes, shares: Sequence[NDArray[np.int64]], nodes: Sequence[int]) -> list[NDArray[np.int64]]:
    """The shares with as few samples moved as bring every node to at most `NODE_EXCESS` times its part of the tokens.

    The longest sample moves that neither leaves its node below its part nor brings the least loaded node above the
    limit; where there is none, the shortest; where even this is too long, samples are exchanged. A share stays above
    the limit where no exchange lowers it, as one sample may be longer than a share.
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
        if fits.size:
            kept[taker].append(kept[giver].pop(int(fits[own[fits].argmax()])))
        else:
            found = _exchange(sizes, kept, load, part, giver)
            if found is None:
                break
            taker, given, taken = found
            kept[giver] = [i for i in kept[giver] if i not in given] + taken
            kept[taker] = [i for i in kept[taker] if i not in taken] + given
        load[[giver, taker]] = sizes[kept[giver]].sum(), sizes[kept[taker]].sum()
    return [np.array(share, dtype=np.int64) for share in kept]


def _exchange(
    sizes: Sizes, kept: Sequence[list[int]], load: NDArray[np.float64], part: NDArray[np.float64], giver: int
) -> tuple[int, list[int], list[int]] | None:
    """A node, samples for it, and its samples in exchange, which leave the larger load of both least; None if no
    exchange found lowers the giver's load.

    The giver offers each sample, and each pair of few samples; the other node returns its longest samples first, as
    many as the giver's limit allows. Of 8 samples a node, exchanges of one for one left 4 to 11 % of steps above it.
    """
    known = np.append(sizes, 0)  # number -1 is no sample
    offers = np.array([[sample, -1] for sample in kept[giver]])
    if len(offers) <= MOST_PAIRED:
        both = np.array([*kept[giver], -1])
        offers = both[np.stack(np.triu_indices(len(both), 1), 1)]
    offered = known[offers].sum(1)
    best, found = load[giver] / part[giver], None
    for taker in range(len(kept)):
        if taker == giver:
            continue
        theirs = sorted(kept[taker], key=lambda i: -sizes[i])
        room = np.maximum(NODE_EXCESS * part[giver] - load[giver] + offered, 0)
        left, returned = room.copy(), np.zeros((len(theirs), len(offers)), dtype=np.bool_)
        for place, sample in enumerate(theirs):
            returned[place] = sizes[sample] <= left
            left -= sizes[sample] * returned[place]
        less = offered - (room - left)
        after = np.maximum((load[giver] - less) / part[giver], (load[taker] + less) / part[taker])
        choice = int(after.argmin())
        if after[choice] < best:
            taken = [sample for sample, back in zip(theirs, returned[:, choice].tolist(), strict=True) if back]
            best, found = after[choice], (taker, [i for i in offers[choice].tolist() if i >= 0], taken)
    return found


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
