"""The plan of a run: sample k as a function of (views, seed, mixture stages, bans, k), and nothing else (P1).

Opening costs a few arrays a source, whatever the number of rows; `Plan.samples` is vectorised over k.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.data.order.mixture import WEIGHT_ONE, Mixture
from fmscale.data.order.order import Order, Orders
from fmscale.data.plan.bans import Ban, Bans
from fmscale.data.views.view import View
from fmscale.errors import ConfigError, DataError
from fmscale.store.digest import canonical_json, metadata_digest

Ranges = tuple[tuple[int, int], ...]
"""Ranges [first, stop) of row ids."""
NEVER = 2**64 - 1
"""Sample number of an event that never comes."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A view in a mixture. Sources of two stages are the same if view and seed are equal."""

    view: View
    weight: int
    """Share of the samples, in units of 2^-32."""
    seed: int
    """Seed of the source's order, 0 <= seed < 2^64."""
    name: str = ""
    """Name in metrics and errors; "": the dataset's name."""

    @property
    def label(self) -> str:
        """`name`, or the dataset's name."""
        return self.name or self.view.dataset


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A mixture that holds from one sample on until the next stage."""

    from_k: int
    """First sample."""
    sources: tuple[Source, ...]
    """The sources, with weights whose sum is 2^32."""
    positions: tuple[int, ...] = ()
    """Position of each source at `from_k`; () continues known sources and begins new sources at 0."""
    excluded: tuple[Ranges, ...] = ()
    """Ranges [first, stop) of rows of each source that the stage leaves out: records that are empty or too long for a
    forward. () leaves out none."""


class Samples(NamedTuple):
    """Samples and their rows; arrays of equal length."""

    k: U64
    source: NDArray[np.uint16]
    """Index into `Plan.sources`."""
    position: U64
    """Position in the source: epoch · rows + place in the epoch."""
    epoch: U64
    row: U64
    """Row id in the source's view, after bans."""
    lane: NDArray[np.uint32]
    """Lane of the shuffle window; bans do not change it."""


class Plan:
    """Function from k to the row of sample k. Immutable: `with_ban` gives a new plan."""

    def __init__(
        self,
        stages: Sequence[Stage],
        bans: Sequence[Ban] = (),
        log_head: int = 0,
        *,
        skips: Iterable[range] = (),
        spikes: int = 0,
    ) -> None:
        """`bans` are in the order of the log; `log_head` is the number of the plan's entries in the order log. `skips`
        are the samples of steps whose update is left out, `spikes` the number of reactions to loss spikes so far.

        Raises ConfigError unless stages begin at 0 and ascend, and the sources of each stage differ and have positive
        weights with the sum 2^32; DataError for invalid bans.
        """
        self.bans = tuple(bans)
        self.log_head = log_head
        self.skips = frozenset(skips)
        self.spikes = spikes
        self.stages, self.sources, self._indexes = _resolved(stages)
        self.orders = tuple(Order(source.view.units, source.seed, source.view.window) for source in self.sources)
        self._orders = Orders(self.orders)
        self._bans = Bans([*_excluded(self.stages, self._indexes), *self.bans], self._orders)
        self._mixtures = [_mixture(stage) for stage in self.stages]
        self._from = np.array([stage.from_k for stage in self.stages], dtype=np.uint64)
        self._starts = [np.array(stage.positions, dtype=np.uint64) for stage in self.stages]

    @cached_property
    def digest(self) -> str:
        """Name of the plan: plans with equal digests have equal samples."""
        stages = [stage_json(stage) for stage in self.stages]
        bans = [ban.to_json() for ban in self.bans]
        return metadata_digest(canonical_json({"version": 1, "stages": stages, "bans": bans}))

    @cached_property
    def flat(self) -> bool:
        """True if samples are made of records, and packed into flat forwards by their lengths."""
        return any(source.view.spec or source.view.kind == "records" for source in self.sources)

    def samples(self, k: U64) -> Samples:
        """The rows of samples k: any numbers, in any order.

        In a flat plan the samples that an entry lists keep their banned rows: all ranks deal forwards by the same
        lengths then, also those that have not read the entry. `lost` tells these samples.
        """
        k = np.asarray(k, dtype=np.uint64)
        source = np.empty(k.shape, dtype=np.intp)
        position = np.empty(k.shape, dtype=np.uint64)
        stage = np.searchsorted(self._from, k, side="right") - 1
        for number in np.flatnonzero(np.bincount(stage)).tolist():
            places = slice(None) if len(self.stages) == 1 else stage == number
            local, order = self._mixtures[number].split(k[places] - self._from[number])
            source[places] = self._indexes[number][local]
            position[places] = self._starts[number][local] + order
        row, lane, epoch = self._orders.rows(source, position)
        row = self._bans.substitute(k, source, position, epoch, row, listed=not self.flat)
        return Samples(k, source.astype(np.uint16), position, epoch, row, lane)

    def lost(self, samples: Samples) -> NDArray[np.bool_]:
        """True for each sample of a flat plan whose row is banned without a substitute: it has no content."""
        out = np.zeros(len(samples.k), dtype=np.bool_)
        for source in np.unique(samples.source).tolist() if self.bans and self.flat else ():
            part = samples.source == source
            out[part] = self._bans.banned(source, samples.row[part], samples.k[part])
        return out

    def position(self, source: int, k: int) -> int:
        """Position of a source at sample k: its samples before k. The cost grows with the number of stages."""
        position = 0
        for number, stage in enumerate(self.stages):
            if stage.from_k > k:
                break
            local = np.flatnonzero(self._indexes[number] == source)
            if local.size:
                stop = self.stages[number + 1].from_k if number + 1 < len(self.stages) else k
                counts = self._mixtures[number].taken(min(stop, k) - stage.from_k)
                position = stage.positions[local[0]] + counts[local[0]]
        return position

    def k_of(self, source: int, position: U64) -> U64:
        """First samples at these positions of a source; NEVER for a position that no sample has."""
        position = np.asarray(position, dtype=np.uint64)
        out = np.full(position.shape, NEVER, dtype=np.uint64)
        for number in reversed(range(len(self.stages))):
            local = np.flatnonzero(self._indexes[number] == source)
            if not local.size:
                continue
            stage, mixture, first = self.stages[number], self._mixtures[number], self._starts[number][local[0]]
            inside = position >= first
            if number + 1 < len(self.stages):
                count = mixture.taken(self.stages[number + 1].from_k - stage.from_k)[local[0]]
                inside &= position - first < np.uint64(count)
            out[inside] = mixture.offset(int(local[0]), position[inside] - first) + np.uint64(stage.from_k)
        return out

    def next_use(self, source: int, unit: U64, k: int) -> U64:
        """First samples >= k that may read units of a source; NEVER without such a sample. See Order.next_use."""
        return self.k_of(source, self.orders[source].next_use(unit, self.position(source, k)))

    def occurrences(self, source: int, row: int, stop: int) -> U64:
        """Sorted samples below `stop` that deliver a row of a source, as itself or as a substitute.

        Misses the substitute of a banned row if σ runs in a circle of banned rows: about one row in N.
        """
        order, last = self.orders[source], self.position(source, stop)
        epochs = np.arange(last // order.units.N + 1, dtype=np.uint64)
        rows, candidates = np.full(len(epochs), row, dtype=np.uint64), []
        for _ in range(order.units.N):
            positions = order.position(rows, epochs)
            candidates.append(self.k_of(source, positions))
            # Backwards along σ: this row replaces a banned row that leads to it.
            rows = positions - epochs * np.uint64(order.units.N)
            ever = np.full(rows.shape, NEVER - 1, dtype=np.uint64)
            banned = self._bans.banned(source, rows, ever) & (rows != row)
            rows, epochs = rows[banned], epochs[banned]
            if not rows.size:
                break
        k = np.unique(np.concatenate(candidates))
        samples = self.samples(k[k < np.uint64(stop)])
        same = (samples.row == np.uint64(row)) & (samples.source == source) & ~self.lost(samples)
        out: U64 = samples.k[same]
        return out

    def quarantined(self, source: int, rows: tuple[int, int]) -> bool:
        """True if bans and quarantines name every row of [first, stop) of a source."""
        return self._bans.named(source, rows)

    def next_stage(self, from_k: int, sources: Iterable[Source], excluded: Iterable[Ranges] = ()) -> Stage:
        """The stage of these sources from `from_k` on. Known sources continue at their positions, new sources at 0."""
        stage = Stage(from_k=from_k, sources=tuple(sources), excluded=tuple(excluded))
        return Plan([*self.stages, stage]).stages[-1]

    def with_ban(self, ban: Ban) -> "Plan":
        """The plan with one more ban or quarantine."""
        return Plan(self.stages, [*self.bans, ban], self.log_head, skips=self.skips, spikes=self.spikes)


def source_key(source: Source) -> tuple[str, int]:
    """Identity of a source: sources with equal keys are the same."""
    return source.view.digest, source.seed


def stage_json(stage: Stage) -> dict[str, Any]:
    """A stage as JSON values; views by their digest."""
    sources = [{"view": s.view.digest, "weight": s.weight, "seed": s.seed, "name": s.name} for s in stage.sources]
    values = {"from_k": stage.from_k, "sources": sources, "positions": list(stage.positions)}
    # Without excluded rows the JSON, and so the digest, is that of plans from before there were any.
    return values if not any(stage.excluded) else {**values, "excluded": stage.excluded}


def _resolved(stages: Sequence[Stage]) -> tuple[tuple[Stage, ...], tuple[Source, ...], list[NDArray[np.intp]]]:
    """(stages with positions, distinct sources by first appearance, index of each stage's sources)."""
    _check(stages)
    sources: dict[tuple[str, int], Source] = {}
    positions: dict[tuple[str, int], int] = {}
    indexes: list[NDArray[np.intp]] = []
    out: list[Stage] = []
    for i, stage in enumerate(stages):
        keys = [source_key(source) for source in stage.sources]
        for key, source in zip(keys, stage.sources, strict=True):
            sources.setdefault(key, source)
        number = {key: place for place, key in enumerate(sources)}
        indexes.append(np.array([number[key] for key in keys], dtype=np.intp))
        start = stage.positions or tuple(positions.get(key, 0) for key in keys)
        out.append(replace(stage, positions=start))
        if i + 1 < len(stages):
            counts = _mixture(stage).taken(stages[i + 1].from_k - stage.from_k)
            positions.update({key: first + count for key, first, count in zip(keys, start, counts, strict=True)})
    return tuple(out), tuple(sources.values()), indexes


def _excluded(stages: Sequence[Stage], indexes: Sequence[NDArray[np.intp]]) -> Iterable[Ban]:
    """The excluded rows of each stage as bans."""
    for stage, index in zip(stages, indexes, strict=True):
        for source, rows in zip(index.tolist(), stage.excluded, strict=False):
            if rows:
                yield Ban(source=source, rows=rows, from_k=stage.from_k)


def _mixture(stage: Stage) -> Mixture:
    return Mixture([source.weight for source in stage.sources])


def _check(stages: Sequence[Stage]) -> None:
    starts = [stage.from_k for stage in stages]
    if not stages or starts[0] != 0 or starts != sorted(set(starts)):
        raise ConfigError(
            "stages must begin at sample 0 and ascend",
            found=starts,
            remedy="Give each a from_k of its own, the first 0.",
        )
    for stage in stages:
        if stage.positions and len(stage.positions) != len(stage.sources):
            raise DataError(
                "a stage has a position for each source",
                found=(stage.from_k, stage.positions),
                remedy=f"Give {len(stage.sources)} positions, or none.",
            )
        if len({source_key(source) for source in stage.sources}) != len(stage.sources):
            raise ConfigError(
                f"the stage from sample {stage.from_k} has a source twice",
                found=[source.label for source in stage.sources],
                remedy="Add their weights, or give them different seeds.",
            )
        weights = [source.weight for source in stage.sources]
        if sum(weights) != WEIGHT_ONE or min(weights) < 1:
            raise ConfigError(
                f"the weights of the stage from sample {stage.from_k} are not positive with the sum 2^32",
                found={source.label: source.weight for source in stage.sources},
                remedy="Make them with fmscale.data.order.mixture.integer_weights, and leave out what has none.",
            )
