"""Segments of every kind by their documents: a record is a document of one token."""

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.records import RecordSegment, open_record_segment
from fmscale.store.segments.tokens import TokenSegment, open_segment


def open_kind(backend: Backend, kind: str, prefix: str, seal_digest: str) -> TokenSegment | RecordSegment:
    """The sealed segment of a commit of this kind, `tokens` or `records`. Raises the errors of `open_segment`."""
    return (open_segment if kind == "tokens" else open_record_segment)(backend, prefix, seal_digest)
