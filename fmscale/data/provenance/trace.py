"""Which documents were in a step, and in which steps a document was: the order, asked both ways.

Costs the documents of the step, or one look through the dataset's document tables; never a replay.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.plan import Plan
from fmscale.data.views.mask import Documents, document_id, find_documents
from fmscale.data.views.placement import Placement, open_placement
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.tokens import open_segment, read_document_table, read_documents


@dataclass(frozen=True, kw_only=True)
class TraceEntry:
    """A piece of a document in a sample."""

    step: int
    """Step that takes the sample."""
    k: int
    """Sample."""
    dataset: str
    """Dataset that the row is of."""
    row: int
    """Row id in the view."""
    document: str
    """Stable id, hex."""
    source: str
    """Path or URL that the document came from."""
    start: int
    """First byte, or record, of the document in its source."""
    stop: int
    """Behind its last byte or record."""


def trace_step(backend: Backend, plan: Plan, batches: BatchSchedule, step: int) -> list[TraceEntry]:
    """The documents of a step, by sample. Raises DataError for a negative step."""
    if step < 0:
        raise DataError("steps count from 0", found=step, remedy="Give 0 or more.")
    samples = plan.samples(np.arange(batches.kappa(step), batches.kappa(step + 1), dtype=np.uint64))
    layouts: dict[int, Placement] = {}
    found = []
    for k, source, row in zip(samples.k.tolist(), samples.source.tolist(), samples.row.tolist(), strict=True):
        view = plan.sources[source].view
        if source not in layouts:
            layouts[source] = open_placement(open_dataset(backend, view.dataset), view)
        for document in _documents_of(backend, layouts[source], row):
            found.append(TraceEntry(step=step, k=k, dataset=view.dataset, row=row, **document))
    return found


def trace_document(
    backend: Backend, plan: Plan, batches: BatchSchedule, document: str, *, steps: int
) -> list[TraceEntry]:
    """The samples below step `steps` that hold a token of a document (id in hex), over all sources.

    Raises DataError where no source has it.
    """
    wanted = document_id(document)
    stop = batches.kappa(steps)
    found, errors = [], []
    for number, source in enumerate(plan.sources):
        view = source.view
        dataset = open_dataset(backend, view.dataset)
        layout = open_placement(dataset, view)
        try:
            documents = find_documents(dataset, ids=[wanted], commits=view.commits, split=view.split)
        except DataError as error:
            errors.append(error)
            continue
        for i in range(len(documents.commit)):
            one = documents.take(np.array([i]))
            entry = _described(backend, layout, one)
            rows = itertools.chain.from_iterable(itertools.starmap(range, layout.rows_of(one)))
            for row in rows:
                for k in plan.occurrences(number, row, stop).tolist():
                    step = batches.step_of(int(k))
                    found.append(TraceEntry(step=step, k=int(k), dataset=view.dataset, row=row, **entry))
    if len(errors) == len(plan.sources):
        raise errors[0]
    return sorted(found, key=lambda traced: traced.k)


def _documents_of(backend: Backend, layout: Placement, row: int) -> Iterator[dict[str, Any]]:
    """Documents that a row holds tokens of, in order."""
    commit, pieces = layout.row_pieces(row)
    manifest = layout.manifests[commit]
    assert manifest is not None
    for piece in pieces:
        segment = open_segment(backend, *manifest.segment(piece.segment))
        table = read_document_table(backend, segment)
        ends = np.cumsum(table["tokens"].to_numpy())
        first = int(np.searchsorted(ends, piece.start, side="right"))
        last = int(np.searchsorted(ends, piece.start + piece.count, side="left"))
        for entry in table.slice(first, last - first + 1).to_pylist():
            yield _entry(entry)


def _described(backend: Backend, layout: Placement, one: Documents) -> dict[str, Any]:
    """Source and span of a document that was found."""
    commit = layout.view.commits.index(int(one.commit[0]))
    manifest = layout.manifests[commit]
    assert manifest is not None
    segment = open_segment(backend, *manifest.segment(int(one.segment[0])))
    ends, _ = read_documents(backend, segment, 0, segment.documents)
    place = int(np.searchsorted(ends, one.stop[0]))
    return _entry(read_document_table(backend, segment).slice(place, 1).to_pylist()[0])


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "document": entry["id"].hex(),
        "source": entry["source"],
        "start": entry["start"],
        "stop": entry["stop"],
    }
