"""Samples that a run ought to deliver, read from the plan and the stored segments without loader, cache or ranks."""

from functools import lru_cache

import numpy as np
import pyarrow as pa

from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import SCHEMA, record_row, tokens_digest
from fmscale.data.provenance.digests import digest_of, remade_digest
from fmscale.data.samples.protocol import NO_SAMPLE, Record
from fmscale.data.samples.specs import open_spec
from fmscale.data.views.placement import open_placement
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.kinds import open_kind, read_bounds
from fmscale.store.segments.records import RecordSegment, read_records
from fmscale.store.segments.tokens import read_tokens

Piece = tuple[bytes, int, int, int]
"""Fields of a piece in a delivery record."""


def expected_samples(backend: Backend, plan: Plan, first_k: int, stop_k: int) -> pa.Table:
    """Samples [first_k, stop_k) of a plan in the schema of delivery records, so that `order_hash` takes both. Every
    byte is verified by the store's plain readers, and samples of a spec are made of it.

    The column `step` is -1, because the step is unknown. Raises CorruptData for a damaged segment, and the errors of a
    spec for a record that cannot become a sample.
    """
    views = [source.view for source in plan.sources]
    placements = [open_placement(open_dataset(backend, view.dataset), view) for view in views]
    specs = [open_spec(backend, view.spec) if view.spec else None for view in views]

    @lru_cache(64)
    def documents_of(kind: str, prefix: str, seal_digest: str) -> tuple[np.ndarray, np.ndarray]:
        return read_bounds(backend, open_kind(backend, kind, prefix, seal_digest))

    def read_row(source: int, row: int) -> tuple[Record, list[Piece]]:
        commit, parts = placements[source].row_pieces(row)
        record: Record = {}
        tokens: list[np.ndarray] = []
        pieces: list[Piece] = []
        at = 0
        for part in parts:
            kind, place = views[source].kind, placements[source].manifest(commit).segment(part.segment)
            segment, (ends, ids) = open_kind(backend, kind, *place), documents_of(kind, *place)
            if isinstance(segment, RecordSegment):
                [record] = read_records(backend, segment, part.start, part.count).to_pylist()
            else:
                tokens.append(read_tokens(backend, segment, part.start, part.count))
            position, stop = part.start, part.start + part.count
            index = int(np.searchsorted(ends, position, side="right"))
            while position < stop:
                begin, end = (int(ends[index - 1]) if index else 0), min(int(ends[index]), stop)
                if end > position:
                    pieces.append((ids[index].tobytes(), position - begin, at, end - position))
                    at, position = at + end - position, end
                index += 1
        if tokens:
            record = {"tokens": np.concatenate(tokens), "pieces": tuple(piece[3] for piece in pieces)}
        return record, pieces

    def expected(k: int, source: int, row: int, lost: bool) -> tuple[bytes, list[Piece]]:
        spec = specs[source]
        if lost:
            assert spec is not None, "only flat plans lose samples"
            return digest_of(spec, NO_SAMPLE), []
        record, pieces = read_row(source, row)
        if spec is None:
            return tokens_digest(record["tokens"]), pieces
        rows, seed = views[source].kind == "tokens", plan.sources[source].seed
        return remade_digest(spec, record, seed=seed, k=k, rows=rows), pieces

    samples = plan.samples(np.arange(first_k, stop_k, dtype=np.uint64))
    columns = (samples.k.tolist(), samples.source.tolist(), samples.row.tolist(), plan.lost(samples).tolist())
    rows = [
        record_row(k, -1, source, row, *expected(k, source, row, lost))
        for k, source, row, lost in zip(*columns, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
