"""Makes the tensors of flat forwards in threads: takes records out of units, decodes them, concatenates their samples.

Forwards are begun in the order of their delivery, as many as their tensors fit into the memory for what is decoded
ahead, and at least one.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np

from fmscale.data.forward import RowPiece
from fmscale.data.plan.flat import rounded
from fmscale.data.plan.plan import Plan
from fmscale.data.reading.arena import Slot
from fmscale.data.reading.sample_sources import SampleSource, SampleSources
from fmscale.data.reading.unit import Unit
from fmscale.data.samples.protocol import NO_SAMPLE, WEIGHTS, BadRecord, Draw, Part, Sample, Spec
from fmscale.errors import DataError
from fmscale.store.tiers.fetch import CorruptChunk


class Entry(NamedTuple):
    """A sample of a forward."""

    k: int
    """Number of the sample."""
    source: int
    row: int
    length: int
    """Upper bound of its length."""
    lost: bool
    """True if the plan took its row away without a substitute."""
    slot: Slot | None
    """Unit in the arena; None for a row that is read alone."""
    offset: int
    """Row's place in the unit."""


class BadSample(NamedTuple):
    """A sample whose record cannot be used."""

    entry: Entry
    error: DataError | CorruptChunk


class MadeForward(NamedTuple):
    """Tensors of a forward on the host; N positions, S samples."""

    parts: dict[str, np.ndarray]
    weights: np.ndarray
    cu_seqlens: np.ndarray
    bounds: np.ndarray
    pieces: list[list[RowPiece]]
    bad: list[BadSample]


@dataclass(kw_only=True, eq=False)
class ForwardJob:
    """A forward to be made."""

    plan: Plan
    entries: Sequence[Entry]
    """Its samples."""
    bytes: int
    """Most bytes of its tensors."""
    future: "Future[MadeForward] | None" = field(default=None)
    """Its tensors, once it was begun."""


class Maker:
    """Makes forwards in the threads of a pool, in order."""

    def __init__(self, sources: SampleSources, pool: ThreadPoolExecutor, memory_bytes: int) -> None:
        """`memory_bytes`: most bytes of forwards that are made and not delivered, unless one has more."""
        self._sources = sources
        self._pool = pool
        self._memory_bytes = memory_bytes
        self._waiting: deque[ForwardJob] = deque()
        self._used = 0
        self._lock = Lock()

    def add(self, jobs: Sequence[ForwardJob]) -> None:
        """Queue forwards. The reads of their units are in the pool's queue already."""
        with self._lock:
            self._waiting.extend(jobs)
        self._begin()

    def delivered(self, job: ForwardJob) -> None:
        """Give back the memory of the oldest forward."""
        with self._lock:
            self._used -= job.bytes
        self._begin()

    def _begin(self) -> None:
        with self._lock:
            while self._waiting and (not self._used or self._used + self._waiting[0].bytes <= self._memory_bytes):
                job = self._waiting.popleft()
                self._used += job.bytes
                job.future = self._pool.submit(make_forward, self._sources, job)


def forward_bytes(parts: Mapping[str, Part], tokens: int, samples: int) -> int:
    """Bytes of the tensors of a forward on the host: parts, weights, positions."""
    size = rounded(tokens) * (4 + 8)
    for part in parts.values():
        values = int(np.prod(part.shape, dtype=np.int64)) * np.dtype(part.dtype).itemsize
        size += values * (rounded(tokens) if part.per_token else samples)
    return size


def make_forward(sources: SampleSources, job: ForwardJob) -> MadeForward:
    """The tensors of a forward. Raises the store's errors, and the errors of a spec's make-function."""
    samples, pieces, bad = [], [], []
    spec: Spec | None = None
    for entry in job.entries:
        source = sources.of(job.plan, entry.source)
        spec = spec or source.spec
        sample: Sample = NO_SAMPLE
        documents: list[RowPiece] = []
        if not entry.lost:
            try:
                unit = _unit(sources, job.plan, entry)
                sample = _sample(source, unit, entry, job.plan.sources[entry.source].seed)
                documents = unit.pieces(entry.offset) if sources.document_ids else []
            except (BadRecord, CorruptChunk) as error:
                bad.append(BadSample(entry, error))
        samples.append(sample)
        pieces.append(documents)
    spec = spec or sources.of(job.plan, 0).spec
    parts, weights, cu_seqlens, bounds = concatenated(spec.parts, samples)
    return MadeForward(parts, weights, cu_seqlens, bounds, pieces, bad)


def _unit(sources: SampleSources, plan: Plan, entry: Entry) -> Unit:
    """The unit of a sample, once it is read."""
    if entry.slot is None:
        return sources.of(plan, entry.source).units.read_row(entry.row)
    assert entry.slot.read is not None
    entry.slot.read.result()
    unit: Unit = entry.slot.content
    return unit


def _sample(source: SampleSource, unit: Unit, entry: Entry, seed: int) -> Sample:
    """The sample of a record. Raises BadRecord for any error of the decoder, as damage takes many forms there."""
    spec = source.spec
    try:
        media = spec.decode(unit.record(entry.offset))
    except (BadRecord, CorruptChunk):
        raise
    except Exception as error:
        raise BadRecord(
            f"a record cannot be decoded: {type(error).__name__}",
            found=str(error)[:200],
            remedy="Repair it and ingest it again, or leave it out with a mask.",
        ) from error
    where = f"sample {entry.k}, row {entry.row} of source {entry.source}"
    derived = {name: column.value(entry.row) for name, column in source.derived.items()}
    try:
        sample = spec.make(media, Draw(seed, entry.k), entry.length)
        sample.tensors.update(derived)
        wrong = _wrong_parts(spec.parts, sample)
    except BadRecord:
        raise
    except Exception as error:
        raise DataError(
            f"the spec's make-function has failed: {type(error).__name__}: {error}"[:200],
            found=where,
            remedy="Mend it; for a record that cannot become a sample, it raises BadRecord.",
        ) from error
    if wrong:
        raise DataError(
            "a sample has other tensors than the parts of its spec",
            found=f"{where}: {wrong}",
            remedy="Make all parts, each of its shape, with a value for each token where the part has one.",
        )
    if sample.length > entry.length:
        raise DataError(
            "a sample is longer than its column of sizes says",
            found=f"{where}: {sample.length} tokens, not {entry.length}",
            remedy="The spec's size must be an upper bound. Raise the spec's version, and derive the column again.",
        )
    return sample


def _wrong_parts(parts: Mapping[str, Part], sample: Sample) -> str:
    """The shapes of a sample's tensors where they differ from the spec's, "" where they agree."""
    wanted = {n: (sample.length, *part.shape) if part.per_token else part.shape for n, part in parts.items()}
    found = {name: np.shape(value) for name, value in sample.tensors.items()}
    found.setdefault(WEIGHTS, (sample.length,))
    wanted.setdefault(WEIGHTS, (sample.length,))
    differ = [n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)]
    return ", ".join(f"{name} {found.get(name)} for {wanted.get(name)}" for name in differ)


def concatenated(
    parts: Mapping[str, Part], samples: Sequence[Sample], least: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Parts, weights, bounds of pieces and bounds of samples of a forward of at least `least` positions."""
    bounds = np.cumsum([0, *(sample.length for sample in samples)], dtype=np.int64)
    N = rounded(max(int(bounds[-1]), least))
    weights = np.zeros((1, N), dtype=np.float32)
    weights[0, : bounds[-1]] = 1
    out = {
        name: np.zeros((1, N, *part.shape) if part.per_token else (len(samples), *part.shape), dtype=part.dtype)
        for name, part in parts.items()
        if name != WEIGHTS
    }
    for number, sample in enumerate(samples):
        first, stop = bounds[number : number + 2].tolist()
        for name, value in sample.tensors.items():
            if name == WEIGHTS:
                weights[0, first:stop] = value
            elif parts[name].per_token:
                out[name][0, first:stop] = value
            else:
                out[name][number] = value
    lengths = [piece for sample in samples for piece in sample.pieces if piece]
    ends = np.cumsum([0, *lengths, *([N - int(bounds[-1])] if bounds[-1] < N else [])], dtype=np.int32)
    return out, weights, ends, bounds
