"""Trace: step → documents or records, and document or record → steps.

A trace reads the documents of the step, or the dataset's document tables once; it never replays a run.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan
from fmscale.data.views.mask import document_id, find_documents
from fmscale.data.views.placement import Placement, open_placement
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.kinds import open_kind


@dataclass(frozen=True, kw_only=True)
class TraceEntry:
    """A piece of a document, or a record, in a sample."""

    step: int
    """Step that takes the sample."""
    k: int
    """Number of the sample."""
    dataset: str
    row: int
    """Row id in the view."""
    document: str
    """Stable id, hex."""
    source: str
    """Path or URL of the document's source."""
    start: int
    """First byte, or record, of the document in its source."""
    stop: int
    """Place behind its last byte or record."""


def trace_step(backend: Backend, plan: Plan, schedule: BatchSchedule, step: int) -> list[TraceEntry]:
    """The documents or records of a step, by sample, without samples that have no content. Raises DataError for a
    negative step.
    """
    if step < 0:
        raise DataError("steps count from 0", found=step, remedy="Give 0 or more.")
    samples = plan.samples(np.arange(schedule.kappa(step), schedule.kappa(step + 1), dtype=np.uint64))
    columns = [column[~plan.lost(samples)].tolist() for column in (samples.k, samples.source, samples.row)]
    placements: dict[int, Placement] = {}
    entries = []
    for k, source, row in zip(*columns, strict=True):
        view = plan.sources[source].view
        if source not in placements:
            placements[source] = open_placement(open_dataset(backend, view.dataset), view)
        commit, pieces = placements[source].row_pieces(row)
        for piece in pieces:
            place = placements[source].manifest(commit).segment(piece.segment)
            for document in _documents(backend, view.kind, place, piece.start, piece.start + piece.count):
                entries.append(TraceEntry(step=step, k=k, dataset=view.dataset, row=row, **document))
    return entries


def trace_document(
    backend: Backend, plan: Plan, schedule: BatchSchedule, document: str, *, steps: int
) -> list[TraceEntry]:
    """The samples below step `steps` with a token of a document, or with a record (id in hex), over all sources.

    Raises DataError where no source has it.
    """
    stop = schedule.kappa(steps)
    entries, errors = [], []
    for number, source in enumerate(plan.sources):
        view = source.view
        dataset = open_dataset(backend, view.dataset)
        placement = open_placement(dataset, view)
        try:
            documents = find_documents(dataset, ids=[document_id(document)], commits=view.commits, split=view.split)
        except DataError as error:
            errors.append(error)
            continue
        for i in range(len(documents.commit)):
            single = documents.take(np.array([i]))
            ranges = placement.rows_of(single)
            if not ranges:
                continue
            manifest = placement.manifest(view.commits.index(int(single.commit[0])))
            place = manifest.segment(int(single.segment[0]))
            (entry,) = _documents(backend, view.kind, place, int(single.start[0]), int(single.stop[0]))
            for row in itertools.chain.from_iterable(itertools.starmap(range, ranges)):
                for k in plan.occurrences(number, row, stop).tolist():
                    step = schedule.step_of(int(k))
                    entries.append(TraceEntry(step=step, k=int(k), dataset=view.dataset, row=row, **entry))
    if len(errors) == len(plan.sources):
        raise errors[0]
    return sorted(entries, key=lambda traced: traced.k)


def _documents(backend: Backend, kind: str, place: tuple[str, str], start: int, stop: int) -> list[dict[str, Any]]:
    """Documents with tokens, or records, in [start, stop) of a segment, in order."""
    table = read_document_table(backend, open_kind(backend, kind, *place))
    ends = np.cumsum(table["tokens"].to_numpy())
    first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop, side="left"))
    rows = table.slice(first, last - first + 1).to_pylist()
    return [{"document": d["id"].hex(), "source": d["source"], "start": d["start"], "stop": d["stop"]} for d in rows]
