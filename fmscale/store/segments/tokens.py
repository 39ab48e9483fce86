"""Token segments: a Zarr group of three arrays with an Arrow table of documents, checksums and a seal.

PREFIX/zarr.json                   group
PREFIX/tokens/...                  uint16 or uint32 (tokens,): all documents one after another
PREFIX/document_ends/...           uint64 (documents,): exclusive end of each document
PREFIX/document_ids/...            uint64 (documents, 2): stable id, 16 bytes as two little-endian words
PREFIX/documents.arrow             id, source, start, stop, tokens of each document
PREFIX/checksums.arrow             one row per inner chunk of tokens, document_ends, document_ids
PREFIX/seal.json                   written last: sizes and digests of all of these
"""

from collections.abc import Iterator
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

__all__ = ["ObjectRef", "TokenSegment", "open_segment", "read_document_table", "read_tokens", "split_tokens"]

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


def split_tokens(
    backend: Backend, segment: TokenSegment, ends: np.ndarray, most: int
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(number of a document, tokens of it and of the documents behind it), read by at most `most` tokens, or a single
    longer document, verified. `ends` are the exclusive ends of all documents of the segment.
    """
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + most, side="right")))
        tokens = read_tokens(backend, segment, begin, int(ends[last - 1]) - begin)
        yield first, np.split(tokens, ends[first : last - 1].astype(np.int64) - begin)
        first = last
