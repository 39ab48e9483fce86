"""Writes the ids of a segment's documents, or records, and the table that describes them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from fmscale.errors import DataError
from fmscale.store.segments.array import ArraySpec
from fmscale.store.segments.array_writer import ArrayWriter, scratch_errors
from fmscale.store.segments.handle import DOCUMENTS_SCHEMA

DOCUMENT_CHUNK_BYTES = 4096
"""Bytes of an inner chunk of the document arrays: a row needs the ends of its few documents, and 4 KiB hold 512
ends.
"""

DOCUMENT_SHARD_BYTES = 2**24
"""A full shard of a document array: 2 M ends."""

DOCUMENT_BATCH = 32768
"""Documents in a record batch of documents.arrow, and the most documents in memory."""


class DocumentsWriter:
    """Writes `document_ids` and `documents.arrow` into a segment's scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.documents = 0
        self._ids = ArrayWriter(folder, "document_ids", "uint64", (2,), DOCUMENT_CHUNK_BYTES, DOCUMENT_SHARD_BYTES)
        self._sources: dict[str, int] = {}
        """Number of each source in the table's dictionary, which grows by deltas."""
        self._pending: list[tuple[bytes, int, int, int, int]] = []
        """Documents: id, source, start, stop, tokens."""
        self._table = folder / "documents.arrow"
        with scratch_errors(self._table):
            self._sink = pa.OSFile(str(self._table), "wb")
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            self._batches = pa.ipc.new_file(self._sink, DOCUMENTS_SCHEMA, options=options)

    def add(self, document_id: bytes, source: str, start: int, stop: int, tokens: int) -> None:
        """Append a document. Raises DataError for an id that is not 16 bytes long."""
        check_id(document_id, source)
        self.documents += 1
        number = self._sources.setdefault(source, len(self._sources))
        self._pending.append((document_id, number, start, stop, tokens))
        if len(self._pending) == DOCUMENT_BATCH:
            self._flush()

    def close(self) -> ArraySpec:
        """Complete the table and the ids; returns the array of the ids."""
        self._flush()
        with scratch_errors(self._table):
            self._batches.close()
            self._sink.close()
        return self._ids.close()

    def discard(self) -> None:
        """Close the open files; they stay incomplete."""
        self._ids.discard()
        self._sink.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        ids, numbers, *spans = zip(*self._pending, strict=True)
        self._pending = []
        self._ids.append(np.frombuffer(b"".join(ids), dtype="<u8").reshape(-1, 2))
        sources = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(list(self._sources)))
        columns = [pa.array(ids, pa.binary(16)), sources, *(pa.array(c, pa.int64()) for c in spans)]
        with scratch_errors(self._table):
            self._batches.write_batch(pa.record_batch(columns, schema=DOCUMENTS_SCHEMA))


def check_id(document_id: bytes, source: str) -> None:
    """Raise DataError for an id that is not 16 bytes long."""
    if len(document_id) != 16:
        raise DataError(
            f"The id of a document of {source} is not 16 bytes long",
            found=document_id.hex(),
            remedy="Give a 16-byte digest.",
        )
