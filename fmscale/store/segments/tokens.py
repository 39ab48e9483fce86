"""Token segments: a Zarr group of three arrays with an Arrow table of documents, checksums and a seal.

PREFIX/zarr.json                   group
PREFIX/tokens/...                  uint16 or uint32 (tokens,): all documents one after another
PREFIX/document_ends/...           uint64 (documents,): exclusive end of each document
PREFIX/document_ids/...            uint64 (documents, 2): stable id, 16 bytes as two little-endian words
PREFIX/documents.arrow             id, source, start, stop, tokens of each document
PREFIX/checksums.arrow             one row per inner chunk of tokens, document_ends, document_ids
PREFIX/seal.json                   written last: sizes and digests of all of these
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.handle import (
    ObjectRef,
    Segment,
    decode_arrays,
    decode_sums,
    read_document_table,
    read_rows,
)
from fmscale.store.segments.seal import FORMAT_VERSION, open_sealed

__all__ = ["ObjectRef", "TokenSegment", "open_segment", "read_document_table", "read_documents", "read_tokens"]

ARRAYS = ("tokens", "document_ends", "document_ids")
"""Arrays of a token segment, in the order of their rows in checksums.arrow."""

CHECKSUMS_SCHEMA = pa.schema([("crc32c", pa.uint32()), ("first_document", pa.uint32())])
"""crc32c of the chunk with its padding; for a token chunk also the first document that ends after the
chunk's first token, 0 for the chunks of other arrays.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSegment(Segment):
    """Handle on a sealed token segment; holds 8 bytes per chunk."""

    tokens: int
    first_document: np.ndarray
    """uint32 per token chunk: index of the first document that ends after the chunk's first token."""


def open_segment(backend: Backend, prefix: str, seal_digest: str) -> TokenSegment:
    """The sealed segment under `prefix`, from two small reads, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, FormatError for a segment
    of records or of a later format_version.
    """
    seal, table = open_sealed(backend, prefix, seal_digest, "tokens", FORMAT_VERSION)
    sums, first_document = decode_sums(table)
    arrays = decode_arrays(ARRAYS, seal, sums)
    return TokenSegment(
        prefix=prefix,
        tokens=seal["tokens"],
        documents=seal["documents"],
        arrays=arrays,
        objects=seal["objects"],
        first_document=first_document[: arrays["tokens"].layout.chunks],
    )


def read_tokens(backend: Backend, segment: TokenSegment, start: int, count: int) -> np.ndarray:
    """Tokens [start, start + count), verified. Raises DataError outside the segment, CorruptData."""
    return read_rows(backend, segment, "tokens", start, count)


def read_documents(backend: Backend, segment: TokenSegment, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive ends (count,) and ids (count, 2) of documents [first, first + count), uint64, verified."""
    ends = read_rows(backend, segment, "document_ends", first, count)
    return ends, read_rows(backend, segment, "document_ids", first, count)
