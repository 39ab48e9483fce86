"""Parquet and Arrow IPC (streams, and files such as Feather 2): a document or a record a row."""

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmscale.data.ingest.formats import Bad, FilePart, Item, RawBatch, RawDocument
from fmscale.data.ingest.formats.arrow_footer import check_whole, rows_of_batches
from fmscale.data.ingest.formats.text import invalid
from fmscale.store.segments.records import storable

ROWS = 1024
"""Most rows of a Parquet file decoded at once."""

ROWS_BYTES = 1 << 19
"""Bytes of rows of Parquet decoded at once, by the mean of a large row group: single rows may be thousands of times as
large as the mean. A call takes 33 us, and the tokenizer needs 160 ms for 512 KiB.
"""

GROUP_BYTES = 16 << 20
"""Bytes of rows decoded at once in a smaller row group, at most."""

BUFFER_BYTES = 1 << 20
"""Bytes of a column chunk of Parquet read at once."""

BLOCK_BYTES = 16 << 20
"""Bytes of records in a block, about; a single record may be larger."""

LIST_BYTES = 1 << 20
"""Bytes of a column that becomes a list of values at once."""

ARROW_MAGIC = b"ARROW1"

BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError, SystemError)
"""Errors of pyarrow for damaged files: a wrong length requests any amount of memory, and a negative length raises
SystemError.
"""

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Mark at the end of a stream; before Arrow 0.15 it was the second half alone."""

BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""Types of the same layout without the promise of UTF-8."""


class Unfit(ValueError):
    """The columns of a table are not as the job needs them."""


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The text in each row's column, or the rows with all columns; spans are row numbers of the file.

    Part i of n has the row groups, or record batches, from i·k/n to (i+1)·k/n of k. An Arrow stream cannot
    be read from the middle: its first part has all batches. Each batch is validated before use: the file is broken from
    the first invalid batch on. (Only invalid UTF-8 and the checksums of Parquet pages show changed bytes within
    a text.) A file without the column, or with something else than text in it, is broken as a whole.
    """
    row = 0
    try:
        for row, batch, path in _parquet(file, part) if part.format == "parquet" else _arrow(file, part):
            yield from _documents(_column(batch, path), row, part) if path else _records(batch, row, part)
            row += len(batch)
    except Unfit as error:
        if not part.index:
            yield Bad("broken", str(error))
    except BROKEN as error:
        # Damage leads to impossible places, which raise EINVAL; the disk or the network raises other errors.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        yield Bad("broken", f"from row {row} on: {str(error)[:200]}")


Batches = Iterator[tuple[int, Any, list[str]]]
"""Number of the first row, the batch, and the path of the text's column, which is empty for records."""


def _parquet(file: BinaryIO, part: FilePart) -> Batches:
    # A buffer, because without it pyarrow reads whole column chunks: all values of a column in a row group.
    parquet = pq.ParquetFile(_source(file), pre_buffer=False, page_checksum_verification=True, buffer_size=BUFFER_BYTES)
    path = _path(parquet.schema_arrow, part)
    batches = _groups(parquet, part, ".".join(path), file)
    yield from ((row, batch, path) for row, batch in (batches if path else _joined(batches)))


def _source(file: BinaryIO) -> Any:
    """The file for pyarrow: a file of this machine by its name, as Python's reads copy each page once more."""
    name = getattr(file, "name", None)
    return pa.PythonFile(file, mode="r") if name is None else pa.OSFile(str(name))


def _groups(parquet: Any, part: FilePart, name: str, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The batches of the part's row groups, with the column of this name, or all columns for an empty name."""
    first, stop = _share(part, parquet.num_row_groups)
    metadata = parquet.metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    wanted = [i for i, path in enumerate(paths) if not name or f"{path}.".startswith(f"{name}.")]
    row = sum(rows[:first])
    for group in range(first, stop):
        count = _rows_at_once(metadata.row_group(group), wanted, partial(_largest, file, group))
        for batch in parquet.iter_batches(count, row_groups=[group], columns=[name] if name else None):
            yield row, batch
            row += len(batch)
    if first < stop:
        if row != sum(rows[:stop]):
            raise ValueError(f"{sum(rows[:stop]) - row} rows fewer than the footer says")
        _check_rows(metadata, rows, part.field)


def _rows_at_once(group: Any, wanted: list[int], largest: Callable[[str], int]) -> int:
    """Rows of a group to be decoded at once, by the bytes of the columns that are read."""
    columns = [group.column(i) for i in wanted]
    size = sum(column.total_uncompressed_size for column in columns)
    count = ROWS if size <= GROUP_BYTES else min(ROWS, ROWS_BYTES * group.num_rows // size)
    for column in columns:
        if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY":
            # Any number of rows may have the largest value of the dictionary, which its page bounds.
            packed = column.data_page_offset - column.dictionary_page_offset
            values = packed * column.total_uncompressed_size // max(1, column.total_compressed_size)
            if count * values > GROUP_BYTES:
                count = min(count, GROUP_BYTES // max(1, largest(column.path_in_schema)))
    return max(1, int(count))


def _largest(file: BinaryIO, group: int, path: str) -> int:
    """Bytes of the largest value in the dictionary of a column chunk."""
    reader = pq.ParquetFile(_source(file), read_dictionary=[path], pre_buffer=False, buffer_size=BUFFER_BYTES)
    batch = next(reader.iter_batches(1, row_groups=[group], columns=[path]))
    (column,) = pa.Table.from_batches([batch]).flatten().columns
    while pa.types.is_struct(column.type):
        (column,) = pa.table([column], ["_"]).flatten().columns
    kind = column.type
    if not pa.types.is_dictionary(kind):
        return 1
    return pc.max(pc.binary_length(_binary(column.chunk(0).dictionary))).as_py() or 1


def _joined(batches: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Batches of about BLOCK_BYTES."""
    start, size, parts = 0, 0, list[Any]()
    try:
        for row, batch in batches:
            if parts and size + batch.nbytes > BLOCK_BYTES:
                yield start, pa.concat_batches(parts)
                size, parts = 0, []
            start = start if parts else row
            parts.append(batch)
            size += batch.nbytes
    except BROKEN:
        if parts:
            yield start, pa.concat_batches(parts)
        raise
    if parts:
        yield start, pa.concat_batches(parts)


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


def _arrow(file: BinaryIO, part: FilePart) -> Batches:
    begin = file.read(len(ARROW_MAGIC))
    file.seek(0)
    source = _source(file)
    if begin == ARROW_MAGIC:
        reader = pa.ipc.open_file(source)
        path = _path(reader.schema, part)
        first, stop = _share(part, reader.num_record_batches)
        row = sum(rows_of_batches(file)[:first]) if first else 0
        batches = (reader.get_batch(i) for i in range(first, stop))
    else:
        if part.index:
            return
        stream = pa.ipc.open_stream(source)
        path = _path(stream.schema, part)
        row, batches = 0, iter(stream)
    for batch in batches:
        yield row, batch, path
        row += len(batch)
    if begin == ARROW_MAGIC:
        check_whole(file)
    else:
        _check_ended(file, source.tell(), END_OF_STREAM if begin.startswith(END_OF_STREAM[:4]) else END_OF_STREAM[4:])


def _check_ended(file: BinaryIO, place: int, mark: bytes) -> None:
    """Raise ValueError unless the stream was read up to its mark at `place`, at the end of the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - len(mark)))
    if place < size:
        raise ValueError(f"the stream ends {size - place} bytes before the file does")
    if file.read() != mark:
        raise ValueError("the stream has no mark at its end: it may be cut")


def _share(part: FilePart, parts: int) -> tuple[int, int]:
    return parts * part.index // part.of, parts * (part.index + 1) // part.of


def _column(batch: Any, path: list[str]) -> Any:
    """The column as binary, so that each row's UTF-8 is checked alone. Raises ArrowInvalid or ValueError for an
    invalid column: pyarrow does not check lengths and offsets, and crashes on wrong values.
    """
    first, *rest = path
    column = batch.column(first)
    column.validate()
    for name in rest:
        column = pc.struct_field(column, name)
    if len(column) != len(batch):
        raise ValueError(f"a column of {len(column)} values in a batch of {len(batch)} rows")
    if pa.types.is_dictionary(column.type):
        column.indices.validate(full=True)
        return pa.DictionaryArray.from_arrays(column.indices, _binary(column.dictionary))
    return _binary(column)


def _binary(column: Any) -> Any:
    binary = column.view(BINARY.get(column.type, column.type))
    binary.validate(full=True)
    return binary


def _records(batch: Any, row: int, part: FilePart) -> Iterator[RawBatch | Bad]:
    """The rows of a batch in storable types, in parts of about BLOCK_BYTES; rows that are not UTF-8 are named.

    Raises ArrowInvalid or ValueError for an invalid column.
    """
    for column in batch.columns:
        column.validate()
    batch.validate()
    if not batch.num_columns and batch.num_rows:
        yield Bad("empty", f"rows {row} to {row + batch.num_rows}: there are no columns")
        return
    step = max(1, min(16 * ROWS, BLOCK_BYTES * batch.num_rows // max(batch.nbytes, 1)))
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            step = max(1, min(step, GROUP_BYTES // max(column.dictionary.nbytes, 1)))
    for start, rows in _decodable(batch, row):
        if rows is None:
            yield Bad("undecodable", f"row {start}")
            continue
        for first in range(0, len(rows), step):
            piece = rows.slice(first, step)
            arrays = [_stored(column) for column in piece.columns]
            fields = [field.with_type(array.type) for field, array in zip(piece.schema, arrays, strict=True)]
            stored = pa.record_batch(arrays, schema=pa.schema(fields, piece.schema.metadata))
            for begin, short in _short(stored, start + first, part.max_document):
                yield RawBatch(short, begin) if short is not None else part.too_long(f"row {begin}")


def _short(batch: Any, row: int, most: int) -> Iterator[tuple[int, Any]]:
    """Number of the first row, and the rows, of the parts of at most `most` bytes; None for a larger row."""
    if batch.nbytes <= most or len(batch) == 1:
        yield row, batch if batch.nbytes <= most else None
        return
    half = len(batch) // 2
    yield from _short(batch.slice(0, half), row, most)
    yield from _short(batch.slice(half), row + half, most)


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


def _documents(column: Any, row: int, part: FilePart) -> Iterator[RawDocument | Bad]:
    for number, value in enumerate(_values(column), row):
        if value is None:
            yield Bad("empty", f"row {number}")
        elif len(value) > part.max_document:
            yield part.too_long(f"row {number}")
        else:
            data = bytes(value)
            yield RawDocument(data, number, number + 1) if invalid(data) < 0 else Bad("undecodable", f"row {number}")


def _values(column: Any) -> Iterable[Any]:
    """The values as bytes or, of a large column, as places in its buffer: pyarrow's scalars are copies of copies."""
    dictionary = pa.types.is_dictionary(column.type)
    values = column.dictionary if dictionary else column
    if (not dictionary and column.nbytes <= LIST_BYTES) or not len(values):
        yield from column.to_pylist()
        return
    if values.type == pa.binary_view():
        values = values.cast(pa.large_binary())
    _, offsets, data = values.buffers()
    kind = np.int64 if values.type == pa.large_binary() else np.int32
    places = np.frombuffer(offsets, kind)[values.offset :].tolist()
    valid = values.is_valid() if values.null_count else None
    data = data or pa.py_buffer(b"")
    for index in column.indices.to_pylist() if dictionary else range(len(column)):
        if index is None or (valid is not None and not valid[index].as_py()):
            yield None
        else:
            yield data.slice(places[index], places[index + 1] - places[index])


def _path(schema: Any, part: FilePart) -> list[str]:
    """The path of the text's column; empty for records. Raises Unfit unless it is there once and leads to text; for
    records, unless the names of columns differ.
    """
    if part.field is None:
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise Unfit(f"two columns have the name {twice[0]}; rename one of them")
        return []
    found = _lead(list(schema), part.field.split("."))
    if found is None:
        names = schema.names
        near = difflib.get_close_matches(part.field, names, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise Unfit(f"no column {part.field} among {', '.join(names[:20])}{meant}; --field names the text's column")
    path, kind = found
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if text not in (pa.null(), *BINARY, *BINARY.values()):
        raise Unfit(f"the column {part.field} holds {kind} and not text; --field names the text's column")
    return path


def _lead(fields: list[Any], names: list[str]) -> tuple[list[str], Any] | None:
    """The columns' names along a path, whole names with dots before paths, and the last type."""
    for count in range(len(names), 0, -1):
        name = ".".join(names[:count])
        kinds = [field.type for field in fields if field.name == name]
        if len(kinds) > 1:
            raise Unfit(f"two columns have the name {name}; rename one of them")
        # pandas writes the type null if no row of a part has a value.
        if kinds and (count == len(names) or pa.types.is_null(kinds[0])):
            return [name], kinds[0]
        if kinds and any(kind in str(kinds[0]).split("<")[0] for kind in ("list", "map")):
            raise Unfit(
                f"the column {name} holds lists ({kinds[0]}), and a text is a single value; --as records keeps all"
            )
        if kinds and pa.types.is_struct(kinds[0]) and (found := _lead(list(kinds[0]), names[count:])):
            return [name, *found[0]], found[1]
    return None
