"""Samples that a run ought to deliver, read from the plan and the stored segments without loader, cache or ranks."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import PIECE, SCHEMA, record_row
from fmscale.data.views.placement import open_placement
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.tokens import open_segment, read_documents, read_tokens


def expected_samples(backend: Backend, plan: Plan, first_k: int, stop_k: int) -> pa.Table:
    """Samples [first_k, stop_k) of a plan in the schema of delivery records, so that `order_hash` takes both. Each
    token is verified by the store's plain reader.

    The column `step` is -1, because the step is unknown. Raises CorruptData for a damaged segment.
    """
    placements = [open_placement(open_dataset(backend, source.view.dataset), source.view) for source in plan.sources]

    @lru_cache(64)
    def documents_of(prefix: str, seal_digest: str) -> tuple[np.ndarray, np.ndarray]:
        segment = open_segment(backend, prefix, seal_digest)
        return read_documents(backend, segment, 0, segment.documents)

    def read_row(source: int, row: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        commit, parts = placements[source].row_pieces(row)
        tokens: list[np.ndarray] = []
        pieces: list[dict[str, Any]] = []
        at = 0
        for part in parts:
            place = placements[source].manifest(commit).segment(part.segment)
            tokens.append(read_tokens(backend, open_segment(backend, *place), part.start, part.count))
            ends, ids = documents_of(*place)
            position, stop = part.start, part.start + part.count
            index = int(np.searchsorted(ends, position, side="right"))
            while position < stop:
                begin, end = (int(ends[index - 1]) if index else 0), min(int(ends[index]), stop)
                if end > position:
                    piece = (ids[index].tobytes(), position - begin, at, end - position)
                    pieces.append(dict(zip(PIECE.names, piece, strict=True)))
                    at, position = at + end - position, end
                index += 1
        return np.concatenate(tokens), pieces

    samples = plan.samples(np.arange(first_k, stop_k, dtype=np.uint64))
    columns = (samples.k.tolist(), samples.source.tolist(), samples.row.tolist())
    rows = [record_row(k, -1, source, row, *read_row(source, row)) for k, source, row in zip(*columns, strict=True)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
