"""Segments of every kind by their documents: a record is a document of one token."""

import numpy as np

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.handle import Segment, read_rows
from fmscale.store.segments.records import RecordSegment, open_record_segment
from fmscale.store.segments.tokens import TokenSegment, open_segment


def open_kind(backend: Backend, kind: str, prefix: str, seal_digest: str) -> TokenSegment | RecordSegment:
    """The sealed segment of a commit of this kind, `tokens` or `records`. Raises the errors of `open_segment`."""
    return (open_segment if kind == "tokens" else open_record_segment)(backend, prefix, seal_digest)


def read_bounds(backend: Backend, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive ends (documents,) and ids (documents, 2) of the segment's documents, uint64, verified."""
    ids = read_rows(backend, segment, "document_ids", 0, segment.documents)
    if isinstance(segment, RecordSegment):
        return np.arange(1, segment.documents + 1, dtype=np.uint64), ids
    return read_rows(backend, segment, "document_ends", 0, segment.documents), ids
