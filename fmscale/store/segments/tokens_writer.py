"""Writes a token segment: documents go into scratch files in one pass, then to the store, the seal last."""

from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import DataError
from fmscale.store.segments.array import encode_group
from fmscale.store.segments.array_writer import ArrayWriter, scratch_errors
from fmscale.store.segments.seal import FORMAT_VERSION
from fmscale.store.segments.tokens import ARRAYS, CHECKSUMS_SCHEMA, DOCUMENTS_SCHEMA
from fmscale.store.segments.writer import SegmentWriter

SHARD_TOKENS = 2**25
"""Tokens in a shard: 64 MiB of uint16, 128 MiB of uint32; an object that stores take in one request."""

TOKEN_CHUNK_BYTES = 16384
"""Bytes of tokens under one checksum. A read takes whole chunks: a unit of 256 KiB reads 1.06 times its bytes (1.25
with 64 KiB). A chunk costs 8 bytes of checksums.arrow and 0.3 us of Python: 5 us beside the 200 us for a unit.
"""

DOCUMENT_CHUNK_BYTES = 4096
"""Bytes of an inner chunk of the document arrays: a row needs the ends of its few documents, and 4 KiB hold 512
ends.
"""

DOCUMENT_SHARD_BYTES = 2**24
"""A full shard of a document array: 2 M ends."""

DOCUMENT_BATCH = 32768
"""Documents in a record batch of documents.arrow, and the most documents in memory."""

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
        self._ids = ArrayWriter(self._folder, "document_ids", "uint64", (2,), *small)
        self._chunk_tokens = chunk_bytes // size
        self._first_document = array("I")
        self._sources: dict[str, int] = {}
        """Number of each source in the table's dictionary, which grows by deltas."""
        self._pending: list[tuple[int, bytes, int, int, int, int]] = []
        """Documents: end, id, source, start, stop, tokens."""
        self._table = self._folder / "documents.arrow"
        with scratch_errors(self._table):
            self._sink = pa.OSFile(str(self._table), "wb")
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            self._batches = pa.ipc.new_file(self._sink, DOCUMENTS_SCHEMA, options=options)

    def add(self, tokens: np.ndarray, document_id: bytes, source: str, start: int, stop: int) -> None:
        """Append a document: tokens (1-D, of the segment's type), id (16 bytes), source and span in the source."""
        if tokens.dtype != self._dtype or tokens.ndim != 1:
            raise DataError(
                f"Tokens of {source} do not fit into a segment of {self._dtype.name}",
                found=f"{tokens.dtype.name} of shape {tokens.shape}",
                remedy="Every document of a dataset has 1-D tokens of one type.",
            )
        if len(document_id) != 16:
            raise DataError(
                f"The id of a document of {source} is not 16 bytes long",
                found=document_id.hex(),
                remedy="Give a 16-byte digest.",
            )
        self._tokens.append(tokens)
        self.tokens += len(tokens)
        # For chunks whose first token lies in this document, it is the first document to end after that token.
        begun = -(-self.tokens // self._chunk_tokens)
        self._first_document.extend([self.documents] * (begun - len(self._first_document)))
        self.documents += 1
        number = self._sources.setdefault(source, len(self._sources))
        self._pending.append((self.tokens, document_id, number, start, stop, len(tokens)))
        if len(self._pending) == DOCUMENT_BATCH:
            self._flush()

    def discard(self) -> None:
        for writer in (self._tokens, self._ends, self._ids):
            writer.discard()
        self._sink.close()
        super().discard()

    def _flush(self) -> None:
        if not self._pending:
            return
        ends, ids, numbers, *spans = zip(*self._pending, strict=True)
        self._pending = []
        self._ends.append(np.array(ends, dtype=np.uint64))
        self._ids.append(np.frombuffer(b"".join(ids), dtype="<u8").reshape(-1, 2))
        sources = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(list(self._sources)))
        columns = [pa.array(ids, pa.binary(16)), sources, *(pa.array(c, pa.int64()) for c in spans)]
        with scratch_errors(self._table):
            self._batches.write_batch(pa.record_batch(columns, schema=DOCUMENTS_SCHEMA))

    def _complete(self) -> tuple[list[str], dict[str, Any]]:
        self._flush()
        specs = [writer.close() for writer in (self._tokens, self._ends, self._ids)]
        with scratch_errors(self._table):
            self._batches.close()
            self._sink.close()
        group = encode_group({"fmscale": {"format_version": FORMAT_VERSION, "kind": "tokens"}})
        with scratch_errors(self._folder):
            (self._folder / "zarr.json").write_bytes(group)
        sums = np.concatenate([spec.crc32c for spec in specs])
        first = np.zeros(len(sums), dtype=np.uint32)
        first[: len(self._first_document)] = self._first_document
        batch = pa.record_batch([pa.array(sums), pa.array(first)], schema=CHECKSUMS_SCHEMA)
        self._write_arrow("checksums.arrow", batch)
        keys = ["zarr.json", "documents.arrow", "checksums.arrow", *(f"{name}/zarr.json" for name in ARRAYS)]
        seal = {
            "format_version": FORMAT_VERSION,
            "kind": "tokens",
            "split": self._split,
            "dtype": self._dtype.name,
            "tokens": self.tokens,
            "documents": self.documents,
            "shard_tokens": specs[0].layout.shard,
            "arrays": {s.name: {**asdict(s.layout), "shards": [asdict(shard) for shard in s.shards]} for s in specs},
            "objects": {key: self._entry(key) for key in keys},
        }
        return [*keys, *(shard.key for spec in specs for shard in spec.shards)], seal
