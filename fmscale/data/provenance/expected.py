"""Samples that a run ought to deliver, read from the plan and the stored segments without loader, cache or ranks."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import SCHEMA
from fmscale.data.views.placement import open_placement
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.tokens import open_segment, read_documents, read_tokens

SAMPLES_AT_ONCE = 4096


class ExpectedSample:
    """Reads planned samples one row at a time, each token verified by the store's plain reader."""

    def __init__(self, backend: Backend, plan: Plan) -> None:
        self._backend = backend
        self._plan = plan
        self._placements = [
            open_placement(open_dataset(backend, source.view.dataset), source.view) for source in plan.sources
        ]
        self._documents = lru_cache(64)(self._read_documents)

    def table(self, first_k: int, stop_k: int) -> pa.Table:
        """Samples [first_k, stop_k) in the schema of delivery records, so that `order_hash` takes both.

        The step is unknown and stands as -1. Raises CorruptData for a damaged segment.
        """
        rows = [
            row
            for begin in range(first_k, stop_k, SAMPLES_AT_ONCE)
            for row in self._rows(begin, min(begin + SAMPLES_AT_ONCE, stop_k))
        ]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _rows(self, first_k: int, stop_k: int) -> Iterator[dict[str, Any]]:
        samples = self._plan.samples(np.arange(first_k, stop_k, dtype=np.uint64))
        columns = (samples.k.tolist(), samples.source.tolist(), samples.row.tolist())
        for k, source, row in zip(*columns, strict=True):
            tokens, pieces = self._row(source, row)
            yield {
                "k": k,
                "step": -1,
                "source": source,
                "row": row,
                "digest": xxhash.xxh3_128_digest(tokens.tobytes()),
                "pieces": pieces,
            }

    def _row(self, source: int, row: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        placement = self._placements[source]
        commit, parts = placement.row_pieces(row)
        tokens: list[np.ndarray] = []
        pieces: list[dict[str, Any]] = []
        at = 0
        for part in parts:
            place = placement.manifest(commit).segment(part.segment)
            segment = open_segment(self._backend, *place)
            tokens.append(read_tokens(self._backend, segment, part.start, part.count))
            ends, ids = self._documents(*place)
            stop = part.start + part.count
            first = int(np.searchsorted(ends, part.start, side="right"))
            position = part.start
            for index in range(first, len(ends)):
                begin, end = (int(ends[index - 1]) if index else 0), min(int(ends[index]), stop)
                if end > position:
                    pieces.append(
                        {
                            "document": ids[index].tobytes(),
                            "offset": position - begin,
                            "start": at,
                            "tokens": end - position,
                        }
                    )
                    at, position = at + end - position, end
                if position == stop:
                    break
        return np.concatenate(tokens), pieces

    def _read_documents(self, prefix: str, seal_digest: str) -> tuple[np.ndarray, np.ndarray]:
        segment = open_segment(self._backend, prefix, seal_digest)
        return read_documents(self._backend, segment, 0, segment.documents)
