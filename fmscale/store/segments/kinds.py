"""Segments of either kind, as their commit names it."""

from typing import TYPE_CHECKING

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.tokens import TokenSegment, open_segment

if TYPE_CHECKING:
    from fmscale.store.segments.records import RecordSegment


def open_kind(backend: Backend, kind: str, prefix: str, seal_digest: str) -> "TokenSegment | RecordSegment":
    """The sealed segment under `prefix`, of `tokens` or of `records`; the errors are those of their modules."""
    if kind == "tokens":
        return open_segment(backend, prefix, seal_digest)
    # Here, so that a run on tokens begins without it.
    from fmscale.store.segments.records import open_record_segment

    return open_record_segment(backend, prefix, seal_digest)
