"""Samples that a run ought to deliver, read from the plan and the stored segments without loader, cache or ranks."""

from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import SCHEMA, record_row
from fmscale.data.provenance.digests import digest_of
from fmscale.data.provenance.stored import AuditSource, Stored, open_stored, stored_digest
from fmscale.data.samples.protocol import NO_SAMPLE
from fmscale.data.views.placement import Placement, open_placement
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset


def expected_samples(backend: Backend, plan: Plan, first_k: int, stop_k: int) -> pa.Table:
    """Samples [first_k, stop_k) of a plan in the schema of delivery records, so that `order_hash` takes both. Every
    byte is verified by the store's plain readers, and samples of a spec are made of it.

    The column `step` is -1, because the step is unknown. Raises CorruptData for a damaged segment, and the errors of a
    spec for a record that cannot become a sample.
    """
    opened = []
    for source in plan.sources:
        view, dataset = source.view, open_dataset(backend, source.view.dataset)
        common: dict[str, Any] = {"commits": view.commits, "split": view.split, "spec": view.spec, "seed": source.seed}
        opened.append((open_placement(dataset, view), open_stored(AuditSource(dataset=dataset, weights=(), **common))))

    def expected(k: int, number: int, row: int, lost: bool) -> dict[str, Any]:
        placement, stored = opened[number]
        if lost:
            assert stored.spec is not None, "only flat plans lose samples"
            return record_row(k, -1, number, row, digest_of(stored.spec, NO_SAMPLE), [])
        document, place, tokens = columns = _pieces(placement, stored, row)
        ids = [stored.ids[index].tobytes() for index in document]
        begins = (place - stored.start[document], np.cumsum(tokens) - tokens)
        pieces = zip(ids, *(column.tolist() for column in (*begins, tokens)), strict=True)
        return record_row(k, -1, number, row, stored_digest(stored, k, *columns), list(pieces))

    samples = plan.samples(np.arange(first_k, stop_k, dtype=np.uint64))
    columns = (samples.k.tolist(), samples.source.tolist(), samples.row.tolist(), plan.lost(samples).tolist())
    return pa.Table.from_pylist(list(map(expected, *columns)), schema=SCHEMA)


def _pieces(placement: Placement, stored: Stored, row: int) -> np.ndarray:
    """int64 [3, pieces]: document, place and tokens of the pieces in a row."""
    commit, parts = placement.row_pieces(row)
    before = sum(manifest.segments for manifest in placement.manifests[:commit] if manifest)
    out = []
    for part in parts:
        place = stored.segments[before + part.segment][1] + part.start
        stop = place + part.count
        index = int(np.searchsorted(stored.stop, place, side="right"))
        while place < stop:
            end = min(int(stored.stop[index]), stop)
            if end > place:
                out.append((index, place, end - place))
            place, index = end, index + 1
    return np.array(out).T
