"""Delivery record: the samples that a rank received, written down by the receiver as evidence for the audit.

One Arrow IPC stream a rank: for every sample its number, source, row and step, a digest, and the pieces of documents in
it as (document id, offset in the document, tokens); a record is a document of one token. The digest of a row of tokens
is the xxh3_128 of its bytes in the dataset's width; `digests.py` has that of a sample in a flat forward. This module
does not use the planner: ids come with the data, and bytes from the tensors that the model gets.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash

from fmscale.data.batch import Microbatch
from fmscale.data.forward import FlatForward
from fmscale.data.provenance.digests import sample_digests
from fmscale.errors import DataError
from fmscale.runtime.record_file import RecordFile

PIECE = pa.struct([("document", pa.binary(16)), ("offset", pa.int64()), ("start", pa.int32()), ("tokens", pa.int32())])
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
CONTENT = ("source", "row", "digest", "pieces")
"""Columns of a sample's content."""
JOB = re.compile(r"(\d+)(?:\.(\d+))?-rank\d+")
"""Names of the files that training writes: the number of the lease, which counts a run's jobs, the part of the job
behind a change of the order, and the rank."""
PARTS = 1000
"""Numbers of a job's parts: part p of job n counts as n * PARTS + p."""
REPLACES = b"replaces_from"
"""Key of a file's first sample whose earlier records it replaces, because the order had changed from there on."""
WHERE = (
    "Give the files of all ranks and jobs: with `train.record_delivery: true` a run writes them to "
    "FOLDER/RUN/delivery/*.arrow, such as runs/demo/delivery/*.arrow."
)
"""Remedy for paths that hold no records."""
FLUSH_ROWS = 1024
"""Rows of a record batch; a kill may lose as many rows of evidence."""
END_OF_STREAM = b"\xff\xff\xff\xff" + bytes(4)
"""Last bytes of an Arrow stream."""


def document_bytes(document: tuple[int, int]) -> bytes:
    """A stable document id as it is stored: two little-endian 64-bit words."""
    return document[0].to_bytes(8, "little") + document[1].to_bytes(8, "little")


def record_row(k: int, step: int, source: int, row: int, digest: bytes, pieces: list[Any]) -> dict[str, Any]:
    """A row of a record, by column; `pieces` in the order of their fields."""
    named = [dict(zip(PIECE.names, piece, strict=True)) for piece in pieces]
    return dict(zip(SCHEMA.names, (k, step, source, row, digest, named), strict=True))


def tokens_digest(tokens: np.ndarray) -> bytes:
    """The digest of a row of tokens in the dataset's width."""
    return xxhash.xxh3_128_digest(tokens.tobytes())


class DeliveryRecord:
    """Appends batches to a file; a context manager. The loader must read document ids.

    Keeps rows that the disk refuses, within bounds, until the disk takes them. The audit reports lost rows.
    """

    def __init__(self, path: Path, dtype: str = "") -> None:
        """`dtype` is the datasets' token type, in which rows of tokens are digested; flat forwards need none."""
        self._dtype = dtype
        self._rows: list[dict[str, Any]] = []
        self._path, self._part = path, 0
        self._file = RecordFile(path, begin=SCHEMA.serialize().to_pybytes())

    def restart(self, from_k: int) -> None:
        """Begin another file, whose samples from `from_k` on replace those of earlier files: the order has changed."""
        self.close()
        self._part += 1
        job, _, rank = self._path.name.partition("-")
        schema = SCHEMA.with_metadata({**SCHEMA.metadata, REPLACES: str(from_k).encode()})
        path = self._path.with_name(f"{job}.{self._part:03d}-{rank}")
        self._file = RecordFile(path, begin=schema.serialize().to_pybytes())

    def add(self, batch: Microbatch | FlatForward) -> None:
        """Record the real rows, or the samples, of a received forward. Raises DataError without document ids."""
        pieces: list[list[tuple[bytes, int, int, int]]] = [[] for _ in range(batch.rows)]
        if isinstance(batch, FlatForward):
            arrays = {name: part.numpy() for name, part in batch.parts.items()}
            whole = (batch.weights.numpy(), batch.positions.numpy(), batch.bounds.numpy())
            digests, source = sample_digests(arrays, *whole, batch.per_sample), batch.sample_source
            for own, found in zip(pieces, batch.pieces, strict=True):
                own += [(document_bytes(piece.document), piece.offset, piece.start, piece.tokens) for piece in found]
            lengths = np.diff(whole[2]).tolist()
            nameless = any(length and not own for length, own in zip(lengths, pieces, strict=True))
        else:
            tokens = batch.tokens.numpy()[: batch.rows].astype(self._dtype)
            digests, source = [tokens_digest(row) for row in tokens], batch.row_source
            for span in batch.spans:
                piece = (document_bytes(span.document), span.offset, span.start, span.stop - span.start)
                pieces[span.row].append(piece)
            nameless = any(unit.ids is None for unit in batch.documents)
        if nameless:
            raise DataError(
                "a delivery record needs the ids of documents or records",
                remedy="`train.record_delivery: true` reads them; from Python, open_loader(document_ids=True).",
            )
        columns = (batch.k.tolist(), source.tolist(), batch.row.tolist(), digests, pieces)
        self._rows += [record_row(k, batch.step, *of_row) for k, *of_row in zip(*columns, strict=True)]
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write pending rows to the file."""
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA)
            self._file.append(batch.serialize().to_pybytes())
            self._rows = []

    def close(self) -> None:
        """Flush and end the file."""
        self.flush()
        self._file.close(END_OF_STREAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(paths: Sequence[Path]) -> pa.Table:
    """All rows of the records by k, then by the added column `job`: that of the file's name (see JOB and PARTS), or 0
    for a name of another kind. A record that a kill cut short counts up to its last complete batch. Rows that a later
    file replaces, because the order had changed, are left out.

    Raises DataError if the records have no row.
    """
    tables, replaced = [], {}
    for path in paths:
        match = JOB.fullmatch(path.stem)
        job = int(match[1]) * PARTS + int(match[2] or 0) if match else 0
        rows, from_k = _rows(path)
        if from_k is not None:
            replaced[job] = from_k
        tables.append(rows.append_column("job", pa.array(np.full(len(rows), job, dtype=np.int64))))
    if not any(map(len, tables)):
        raise DataError("no delivered rows in the records", found=[str(path) for path in paths], remedy=WHERE)
    table = pa.concat_tables(tables).sort_by([("k", "ascending"), ("job", "ascending")])
    k, jobs = table["k"].to_numpy(), table["job"].to_numpy()
    for job, from_k in replaced.items():
        gone = (jobs < job) & (k >= from_k)
        table, k, jobs = table.filter(pa.array(~gone)), k[~gone], jobs[~gone]
    return table


def _rows(path: Path) -> tuple[pa.Table, int | None]:
    """The whole rows of a file, and the first sample whose earlier records they replace."""
    batches: list[pa.RecordBatch] = []
    from_k: int | None = None
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as reader:
            if (first := (reader.schema.metadata or {}).get(REPLACES)) is not None:
                from_k = int(first)
            batches.extend(reader)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError("no such delivery record", found=str(path), remedy=WHERE) from error
    except (pa.ArrowInvalid, OSError) as error:
        # A stream that ends early raises an error without errno; a failing disk sets errno.
        if getattr(error, "errno", None) is not None:
            raise
    return pa.Table.from_batches([batch.replace_schema_metadata(SCHEMA.metadata) for batch in batches], SCHEMA), from_k


def without_repeats(table: pa.Table) -> pa.Table:
    """The table with each sample once: a killed run delivers the samples behind its checkpoint again.

    Raises DataError for a sample whose second delivery has other documents or bytes.
    """
    again = repeats(table)
    for i in again.tolist():
        column = changed(table, i)
        if column is not None:
            raise DataError(
                "a sample was delivered twice, and differently",
                found=f"sample {table['k'][i]}: {column} {table[column][i - 1]} and {table[column][i]}",
                remedy="The run was resumed with other data; look at both with `fmscale dataset trace`.",
            )
    return without(table, again)


def repeats(table: pa.Table) -> np.ndarray:
    """Indexes of rows, in k order, with the same sample as the row before."""
    k = table["k"].to_numpy()
    return np.flatnonzero(k[1:] == k[:-1]) + 1


def changed(table: pa.Table, i: int) -> str | None:
    """The first column in which row i has other content than the row before; None if their content is equal."""
    before, row = table.slice(i - 1, 1), table.slice(i, 1)
    return next((name for name in CONTENT if not before[name].equals(row[name])), None)


def without(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table without the rows of these indexes."""
    keep = np.ones(len(table), dtype=bool)
    keep[rows] = False
    return table.filter(pa.array(keep))


def order_hash(table: pa.Table) -> str:
    """xxh3_128 over (k, pieces, token digest) of all rows in k order: equal for equal deliveries."""
    state = xxhash.xxh3_128()
    for row in table.select(["k", "digest", "pieces"]).to_pylist():
        state.update(row["k"].to_bytes(8, "little") + row["digest"])
        for piece in row["pieces"]:
            state.update(piece["document"] + piece["offset"].to_bytes(8, "little"))
    return state.hexdigest()
