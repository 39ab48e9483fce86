"""What a rank received, written down by the receiver: the evidence that the audit works from.

One Arrow IPC stream a rank: for every row its sample number, source and step, the xxh3_128 of its token bytes
in the dataset's width, and the pieces of documents in it as (document id, offset in the document, tokens).
Nothing here asks the planner; ids come with the data, bytes from the tensor that the model is given.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import xxhash

from fmscale.data.batch import Batch
from fmscale.errors import DataError

PIECE = pa.struct(
    [("document", pa.binary(16)), ("offset", pa.int64()), ("start", pa.int32()), ("tokens", pa.int32())]
)
SCHEMA = pa.schema(
    [
        ("k", pa.uint64()),
        ("step", pa.int64()),
        ("source", pa.uint16()),
        ("row", pa.uint64()),
        ("digest", pa.binary(16)),
        ("pieces", pa.list_(PIECE)),
    ],
    metadata={"format_version": "1"},
)
FLUSH_ROWS = 1024
"""Rows per record batch: what a kill loses of the evidence."""


def document_bytes(document: tuple[int, int]) -> bytes:
    """A stable document id as it is stored: two little-endian 64-bit words."""
    return document[0].to_bytes(8, "little") + document[1].to_bytes(8, "little")


class DeliveryRecord:
    """Appends what it is shown to a file; a context manager. The loader must read document ids."""

    def __init__(self, path: Path, dtype: str) -> None:
        """`dtype` is the dataset's token type, in which token bytes are digested."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._dtype = dtype
        self._rows: list[dict[str, object]] = []
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, SCHEMA)

    def add(self, batch: Batch) -> None:
        """Record the real rows of a batch, as received."""
        if any(unit.ids is None for unit in batch.documents):
            raise DataError(
                "a delivery record needs document ids", remedy="Open the loader with document_ids=True."
            )
        tokens = batch.tokens.numpy().astype(self._dtype)
        pieces: list[list[dict[str, object]]] = [[] for _ in range(batch.rows)]
        for span in batch.spans:
            pieces[span.row].append(
                {
                    "document": document_bytes(span.document),
                    "offset": span.offset,
                    "start": span.start,
                    "tokens": span.stop - span.start,
                }
            )
        for i in range(batch.rows):
            self._rows.append(
                {
                    "k": int(batch.k[i]),
                    "step": batch.step,
                    "source": int(batch.source[i]),
                    "row": int(batch.row[i]),
                    "digest": xxhash.xxh3_128_digest(tokens[i].tobytes()),
                    "pieces": pieces[i],
                }
            )
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending to the file."""
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA))
            self._file.flush()
            self._rows = []

    def close(self) -> None:
        """Flush and end the file."""
        self.flush()
        self._writer.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(paths: Sequence[Path]) -> pa.Table:
    """All rows of the records, in k order. A record that a kill cut short counts up to its last whole batch.

    Raises DataError where there is none.
    """
    batches = [batch for path in paths for batch in _batches(path)]
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    if len(table) == 0:
        raise DataError(
            "no delivered rows to audit",
            found=[str(path) for path in paths],
            remedy="Give the files that DeliveryRecord wrote, one a rank.",
        )
    return table.sort_by("k")


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as reader:
            while True:
                try:
                    yield reader.read_next_batch()
                except (StopIteration, pa.ArrowInvalid, OSError):
                    return
    except FileNotFoundError as error:
        raise DataError(
            "no such delivery record", found=str(path), remedy="Check the path; one file a rank."
        ) from error
    except pa.ArrowInvalid:
        return


def without_repeats(table: pa.Table) -> pa.Table:
    """The table with each sample once: a run that was killed delivers again what came after its checkpoint.

    Raises DataError where a sample came with other documents or bytes the second time.
    """
    k = table["k"].to_numpy()
    again = np.flatnonzero(k[1:] == k[:-1]) + 1
    for i in again.tolist():
        one, other = table.slice(i - 1, 1), table.slice(i, 1)
        for column in ("source", "row", "digest", "pieces"):
            if not one[column].equals(other[column]):
                raise DataError(
                    "a sample was delivered twice, and differently",
                    found=f"sample {int(k[i])}: {column} {one[column][0]} and {other[column][0]}",
                    remedy="The run was resumed with other data; look at both with `fmscale dataset trace`.",
                )
    keep = np.ones(len(k), dtype=bool)
    keep[again] = False
    return table.filter(pa.array(keep))


def order_hash(table: pa.Table) -> str:
    """xxh3_128 over (k, pieces, token digest) of all rows in k order: equal for equal deliveries."""
    state = xxhash.xxh3_128()
    for row in table.select(["k", "digest", "pieces"]).to_pylist():
        state.update(row["k"].to_bytes(8, "little") + row["digest"])
        for piece in row["pieces"]:
            state.update(piece["document"] + piece["offset"].to_bytes(8, "little"))
    return state.hexdigest()
