"""Writes a token segment: documents go into scratch files in one pass, then to the store, the seal last."""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.errors import DataError
from fmscale.store.segments.array_writer import ArrayWriter
from fmscale.store.segments.documents_writer import (
    DOCUMENT_BATCH,
    DOCUMENT_CHUNK_BYTES,
    DOCUMENT_SHARD_BYTES,
    DocumentsWriter,
    check_id,
)
from fmscale.store.segments.seal import FORMAT_VERSION
from fmscale.store.segments.tokens import CHECKSUMS_SCHEMA
from fmscale.store.segments.writer import SegmentWriter

SHARD_TOKENS = 2**25
"""Tokens in a shard: 64 MiB of uint16, 128 MiB of uint32; an object that stores take in one request."""

TOKEN_CHUNK_BYTES = 16384
"""Bytes of tokens under one checksum. A read takes whole chunks: a unit of 256 KiB reads 1.06 times its bytes (1.25
with 64 KiB). A chunk costs 8 bytes of checksums.arrow and 0.3 us of Python: 5 us beside the 200 us for a unit.
"""

TOKEN_TYPES = ("uint16", "uint32")
"""Types that tokens may have."""


class TokenSegmentWriter(SegmentWriter):
    """Gathers documents: about 3 MiB, the sources' names and 4 bytes per chunk in memory, the rest in files.

    Raises DataError for tokens of another type or an id of another length.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        dtype: str,
        split: str,
        shard_tokens: int = SHARD_TOKENS,
        chunk_bytes: int = TOKEN_CHUNK_BYTES,
    ) -> None:
        if dtype not in TOKEN_TYPES:
            raise DataError("Tokens of this type cannot be stored", found=dtype, remedy="Use uint16 or uint32.")
        self.tokens = 0
        self.documents = 0
        self._dtype = np.dtype(dtype)
        self._split = split
        super().__init__(scratch, "segment-")
        size = self._dtype.itemsize
        self._tokens = ArrayWriter(self._folder, "tokens", dtype, (), chunk_bytes, shard_tokens * size)
        small = (DOCUMENT_CHUNK_BYTES, DOCUMENT_SHARD_BYTES)
        self._ends = ArrayWriter(self._folder, "document_ends", "uint64", (), *small)
        self._new_ends = array("Q")
        self._documents = DocumentsWriter(self._folder)
        self._chunk_tokens = chunk_bytes // size
        self._first_document = array("I")

    def add(
        self, tokens: np.ndarray | Iterable[np.ndarray], document_id: bytes, source: str, start: int, stop: int
    ) -> None:
        """Append a document: tokens (1-D, of the segment's type; or parts of them), id (16 bytes), source and span in
        the source.
        """
        check_id(document_id, source)
        before = self.tokens
        for part in (tokens,) if isinstance(tokens, np.ndarray) else tokens:
            if part.dtype != self._dtype or part.ndim != 1:
                raise DataError(
                    f"Tokens of {source} do not fit into a segment of {self._dtype.name}",
                    found=f"{part.dtype.name} of shape {part.shape}",
                    remedy="Every document of a dataset has 1-D tokens of one type.",
                )
            self._tokens.append(part)
            self.tokens += len(part)
        self._documents.add(document_id, source, start, stop, self.tokens - before)
        # For chunks whose first token lies in this document, it is the first document to end after that token.
        begun = -(-self.tokens // self._chunk_tokens)
        self._first_document.extend([self.documents] * (begun - len(self._first_document)))
        self.documents += 1
        self._new_ends.append(self.tokens)
        if len(self._new_ends) == DOCUMENT_BATCH:
            self._flush()

    def discard(self) -> None:
        for writer in (self._tokens, self._ends, self._documents):
            writer.discard()
        super().discard()

    def _flush(self) -> None:
        self._ends.append(np.array(self._new_ends, dtype=np.uint64))
        self._new_ends = array("Q")

    def _complete(self) -> tuple[list[str], dict[str, Any]]:
        self._flush()
        specs = [self._tokens.close(), self._ends.close(), self._documents.close()]
        seal = {
            "format_version": FORMAT_VERSION,
            "kind": "tokens",
            "split": self._split,
            "dtype": self._dtype.name,
            "tokens": self.tokens,
            "documents": self.documents,
            "shard_tokens": specs[0].layout.shard,
        }
        return self._seal(seal, specs, CHECKSUMS_SCHEMA, self._first_document)
