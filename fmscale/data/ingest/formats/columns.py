"""Parquet and Arrow IPC (streams, and files such as Feather 2): a document or a record a row."""

import difflib
import errno
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmscale.data.ingest.formats import Bad, FilePart, Item, RawBatch, RawDocument
from fmscale.data.ingest.formats.arrow_footer import check_whole, rows_of_batches
from fmscale.data.ingest.formats.text import invalid
from fmscale.errors import DataError
from fmscale.store.segments.records import storable

ROWS = 1024
"""Rows of a Parquet file decoded at once."""

BUFFER_BYTES = 1 << 20
"""Bytes of a column chunk of Parquet read at once."""

RECORD_BYTES = 16 << 20
"""Bytes of records decoded at once, about; a single record may be larger."""

ARROW_MAGIC = b"ARROW1"

BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError, SystemError)
"""Errors of pyarrow for damaged files: a wrong length requests any amount of memory, and a negative length raises
SystemError.
"""

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Mark at the end of a stream; before Arrow 0.15 it was the second half alone."""

BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""Types of the same layout without the promise of UTF-8."""


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The text in each row's column, or the rows with all columns; spans are row numbers of the file.

    Part i of n has the row groups, or record batches, from i·k/n to (i+1)·k/n of k. An Arrow stream cannot
    be read from the middle: its first part has all batches. Each batch is validated before use: the file is broken from
    the first invalid batch on. (Only invalid UTF-8 and the checksums of Parquet pages show changed bytes within
    a text.) Raises DataError for a column that is missing or holds no text.
    """
    row = 0
    try:
        batches = _parquet(file, part) if part.format == "parquet" else _arrow(file, part)
        for row, batch in batches:
            yield from _records(batch, row) if part.field is None else _documents(_column(batch, part.field), row)
            row += len(batch)
    except BROKEN as error:
        # Damage leads to impossible places, which raise EINVAL; the disk or the network raises other errors.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        yield Bad("broken", f"from row {row} on: {str(error)[:200]}")


def _parquet(file: BinaryIO, part: FilePart) -> Iterator[tuple[int, Any]]:
    """Number of the first row, and the batch, of each batch of the part."""
    # A buffer, because without it pyarrow reads whole column chunks: all values of a column in a row group.
    parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True, buffer_size=BUFFER_BYTES)
    _check_column(parquet.schema_arrow, part)
    first, stop = _share(part, parquet.num_row_groups)
    metadata = parquet.metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    row = sum(rows[:first])
    if first == stop:
        return
    count, columns = ROWS, None if part.field is None else [part.field]
    if part.field is None:
        # A count alone is no bound: 1,024 rows of 1 MB took 1.9 GB.
        size = max(metadata.row_group(i).total_byte_size // max(rows[i], 1) for i in range(first, stop))
        count = max(1, min(ROWS, RECORD_BYTES // max(size, 1)))
    for batch in parquet.iter_batches(count, row_groups=list(range(first, stop)), columns=columns):
        yield row, batch
        row += len(batch)
    if row != sum(rows[:stop]):
        raise ValueError(f"{sum(rows[:stop]) - row} rows fewer than the footer says")
    _check_rows(metadata, rows, part.field)


def _check_rows(metadata: Any, rows: list[int], field: str | None) -> None:
    """Raise ValueError if the footer contradicts itself: pyarrow then leaves rows out."""
    if sum(rows) != metadata.num_rows:
        raise ValueError(f"the footer says {metadata.num_rows} rows, and {sum(rows)} in its row groups")
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        if field in (None, column.path) and not column.max_repetition_level:
            values = [metadata.row_group(i).column(number).num_values for i in range(len(rows))]
            if values != rows:
                raise ValueError("the footer says other numbers of values than of rows")


def _arrow(file: BinaryIO, part: FilePart) -> Iterator[tuple[int, Any]]:
    begin = file.read(len(ARROW_MAGIC))
    file.seek(0)
    if begin == ARROW_MAGIC:
        reader = pa.ipc.open_file(pa.PythonFile(file, mode="r"))
        _check_column(reader.schema, part)
        first, stop = _share(part, reader.num_record_batches)
        row = sum(rows_of_batches(file)[:first]) if first else 0
        batches = (reader.get_batch(i) for i in range(first, stop))
    else:
        if part.index:
            return
        stream = pa.ipc.open_stream(pa.PythonFile(file, mode="r"))
        _check_column(stream.schema, part)
        row, batches = 0, iter(stream)
    for batch in batches:
        yield row, batch
        row += len(batch)
    if begin == ARROW_MAGIC:
        check_whole(file)
    else:
        _check_ended(file, END_OF_STREAM if begin.startswith(END_OF_STREAM[:4]) else END_OF_STREAM[4:])


def _check_ended(file: BinaryIO, mark: bytes) -> None:
    """Raise ValueError unless the stream was read up to its mark, at the end of the file."""
    place, size = file.tell(), file.seek(0, 2)
    file.seek(max(0, size - len(mark)))
    if place < size:
        raise ValueError(f"the stream ends {size - place} bytes before the file does")
    if file.read() != mark:
        raise ValueError("the stream has no mark at its end: it may be cut")


def _share(part: FilePart, parts: int) -> tuple[int, int]:
    return parts * part.index // part.of, parts * (part.index + 1) // part.of


def _column(batch: Any, field: str) -> Any:
    """The column as binary, so that each row's UTF-8 is checked alone. Raises ArrowInvalid or ValueError for an
    invalid column: pyarrow does not check lengths and offsets, and crashes on wrong values.
    """
    first, *rest = field.split(".")
    column = batch.column(first)
    column.validate()
    for name in rest:
        column = pc.struct_field(column, name)
    if len(column) != len(batch):
        raise ValueError(f"a column of {len(column)} values in a batch of {len(batch)} rows")
    if pa.types.is_dictionary(column.type):
        column.indices.validate(full=True)
        return pa.DictionaryArray.from_arrays(column.indices, _binary(column.dictionary)).dictionary_decode()
    return _binary(column)


def _binary(column: Any) -> Any:
    binary = column.view(BINARY.get(column.type, column.type))
    binary.validate(full=True)
    return binary


def _records(batch: Any, row: int) -> Iterator[RawBatch | Bad]:
    """The rows of a batch in storable types, in parts of about RECORD_BYTES; rows that are not UTF-8 are named.

    Raises ArrowInvalid or ValueError for an invalid column.
    """
    for column in batch.columns:
        column.validate()
    batch.validate()
    if not batch.num_columns and batch.num_rows:
        yield Bad("empty", f"rows {row} to {row + batch.num_rows}: there are no columns")
        return
    step = max(1, min(16 * ROWS, RECORD_BYTES * batch.num_rows // max(batch.nbytes, 1)))
    for start, part in _decodable(batch, row):
        if part is None:
            yield Bad("undecodable", f"row {start}")
            continue
        for first in range(0, len(part), step):
            piece = part.slice(first, step)
            arrays = [_stored(column) for column in piece.columns]
            fields = [field.with_type(array.type) for field, array in zip(piece.schema, arrays, strict=True)]
            yield RawBatch(pa.record_batch(arrays, schema=pa.schema(fields, piece.schema.metadata)), start + first)


def _decodable(batch: Any, row: int) -> Iterator[tuple[int, Any]]:
    """Number of the first row, and the rows, of the parts that are UTF-8; None for a row that is not."""
    undecodable = False
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            undecodable = True
    if not undecodable:
        yield row, batch
    elif len(batch) == 1:
        yield row, None
    else:
        half = len(batch) // 2
        # `take` copies: a slice of lists would still show the other half's values to `validate`.
        yield from _decodable(batch.take(list(range(half))), row)
        yield from _decodable(batch.take(list(range(half, len(batch)))), row + half)


def _stored(column: Any) -> Any:
    """The column in its storable type."""
    kind = storable(column.type)
    if kind == column.type:
        return column
    # pyarrow casts a list_view to empty lists, and does not cast runs.
    odd = any(name in str(column.type) for name in ("list_view", "run_end_encoded"))
    return pa.array(column.to_pylist(), kind) if odd else column.cast(kind)


def _documents(column: Any, row: int) -> Iterator[RawDocument | Bad]:
    for number, data in enumerate(column.to_pylist(), row):
        if data is None:
            yield Bad("empty", f"row {number}")
            continue
        yield Bad("undecodable", f"row {number}") if invalid(data) >= 0 else RawDocument(data, number, number + 1)


def _check_column(schema: Any, part: FilePart) -> None:
    """Raise DataError unless the field's path leads to text; for records, unless the names of columns differ."""
    fields = list(schema)
    kind: Any = None
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if part.field is None and twice:
        remedy = "Rename them, or leave the file out."
        raise DataError(f"Two columns of {part.source} have one name", found=twice[0], remedy=remedy)
    for name in part.field.split(".") if part.field else ():
        names = [field.name for field in fields]
        if names.count(name) != 1:
            near = difflib.get_close_matches(name, names, 1)
            raise DataError(
                f"{part.source} has no column {part.field}",
                found=", ".join(names[:20]),
                remedy=(f"Did you mean {near[0]!r}? " if near else "") + "Name the text's column with --field.",
            )
        kind = fields[names.index(name)].type
        if pa.types.is_null(kind):  # pandas writes this type if no row of a part has a value
            return
        fields = list(kind) if pa.types.is_struct(kind) else []
    if part.field is None:
        return
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if text not in (*BINARY, *BINARY.values()):
        raise DataError(
            f"The column {part.field} of {part.source} does not hold text",
            found=str(kind),
            remedy="Name the text's column with --field.",
        )
