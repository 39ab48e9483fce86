"""Blocks of records: parsed input that waits in scratch files for the end of its work unit.

A segment has one schema, and its last record may bring a column, or another type of a column. So a unit is read once,
into blocks, and then its blocks are written under the schema that holds them all. Blocks lie on the disk, because a
unit of huge records would not fit into memory, and because the process that reads tables then hands over a path
instead of a copy.
"""

import json
import os
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.ingest.formats import RawBatch, RawRecord
from fmscale.store.segments.array_writer import scratch_errors

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 4096
"""Size of a block of parsed objects: tens of MB as Python objects. A larger record is a block of its own."""

JSON = {b"fmscale.json": b"1"}
"""Metadata of a column of JSON texts, which stand for values that have no type in common."""

ORIGIN = pa.schema([("source", pa.string()), ("start", pa.int64()), ("stop", pa.int64())])
"""Last columns of a block: the source name and the span of each record."""

MOST_DEPTH = 60
"""Levels of a nested column: Arrow's files have 64 at most. Deeper objects become JSON text."""

UNTYPED = (pa.ArrowException, OverflowError, TypeError, ValueError)
"""Errors of pyarrow for values that have no type in common."""


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Records in a scratch file."""

    path: str
    """The file, an Arrow stream of one batch."""
    rows: int


def spill(
    batch: pa.RecordBatch, sources: Sequence[str], starts: Sequence[int], stops: Sequence[int], folder: Path
) -> RecordBlock:
    """Write a block into a new file of `folder`. Raises StoreFull or StoreError if the folder cannot be written."""
    origin = [pa.array(column, field.type) for column, field in zip((sources, starts, stops), ORIGIN, strict=True)]
    whole = pa.record_batch(
        [*batch.columns, *origin], schema=pa.schema([*batch.schema, *ORIGIN], batch.schema.metadata)
    )
    with scratch_errors(folder):
        number, path = tempfile.mkstemp(".arrow", dir=folder)
        os.close(number)
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_batch(whole)
    return RecordBlock(path, batch.num_rows)


def spill_rows(raw: RawBatch, source: str, folder: Path) -> RecordBlock:
    """Write consecutive rows of a table as a block."""
    rows = range(raw.start, raw.start + len(raw.batch))
    return spill(raw.batch, [source] * len(rows), rows, [row + 1 for row in rows], folder)


def gather(items: Iterable[tuple[str, RawRecord | RawBatch | RecordBlock]], folder: Path) -> Iterator[RecordBlock]:
    """Blocks of the items (source name, item), in order."""
    records: list[tuple[str, RawRecord]] = []
    size = 0

    def flush() -> RecordBlock:
        batch = batch_of([record.values for _, record in records])
        sources = [source for source, _ in records]
        block = spill(batch, sources, [r.start for _, r in records], [r.stop for _, r in records], folder)
        records.clear()
        return block

    for source, item in items:
        if records and (not isinstance(item, RawRecord) or size + item.bytes > BLOCK_BYTES):
            yield flush()
        if not isinstance(item, RawRecord):
            yield item if isinstance(item, RecordBlock) else spill_rows(item, source, folder)
            continue
        size = item.bytes + (size if records else 0)
        records.append((source, item))
        del item  # with its name a huge record would stay in memory while the next is read
        if size >= BLOCK_BYTES or len(records) == BLOCK_ROWS:
            yield flush()
    if records:
        yield flush()


def load(block: RecordBlock) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The records of a block, and their sources, starts and stops; both mapped."""
    batch = pa.ipc.open_stream(pa.memory_map(block.path)).read_next_batch()
    count = len(batch.schema) - len(ORIGIN)
    schema = pa.schema(list(batch.schema)[:count], batch.schema.metadata)
    origin = pa.RecordBatch.from_arrays(batch.columns[count:], schema=ORIGIN)
    return pa.RecordBatch.from_arrays(batch.columns[:count], schema=schema), origin


def batch_of(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """The rows with all their columns, in order of appearance; null where a row lacks a column."""
    fields, arrays = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        metadata = None
        try:
            array = pa.array(values) if len(values) > 1 or not isinstance(values[0], bytes) else _binary(values[0])
            if _is_deep(array.type):
                raise TypeError
        except UNTYPED:
            array, metadata = pa.array(map(_json, values), pa.string()), JSON
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _is_deep(kind: pa.DataType) -> bool:
    """True for a type of more than MOST_DEPTH levels."""
    level = [kind]
    for _ in range(MOST_DEPTH):
        level = [inner.field(i).type for inner in level for i in range(inner.num_fields)]
    return bool(level)


def schema_of(blocks: Sequence[RecordBlock]) -> pa.Schema:
    """The schema that holds the records of all blocks: columns in order of appearance, each of a type that holds the
    values of all blocks exactly, or else JSON text.
    """
    schemas = [load(block)[0].schema for block in blocks]
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _common(fields[field.name], field) if field.name in fields else field
    for block, schema in zip(blocks, schemas, strict=True):
        for name, field in fields.items():
            if name not in schema.names:
                fields[name] = field.with_nullable(True)
            elif not _is_json(field) and schema.field(name).type != field.type:
                try:
                    _cast(load(block)[0].column(name), field.type)
                except UNTYPED:
                    fields[name] = _as_json(field)
    same = len({str(schema.metadata) for schema in schemas}) == 1
    return pa.schema(fields.values(), schemas[0].metadata if same else None)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The records under the schema of all blocks."""
    arrays = []
    for field in schema:
        known = field.name in batch.schema.names
        array = batch.column(field.name) if known else pa.nulls(len(batch), field.type)
        if known and _is_json(field) and not _is_json(batch.schema.field(field.name)):
            array = pa.array(map(_json, array.to_pylist()), pa.string())
        arrays.append(_cast(array, field.type))
    return pa.record_batch(arrays, schema=schema)


def _common(one: pa.Field, other: pa.Field) -> pa.Field:
    """A field for the values of both."""
    nullable = one.nullable or other.nullable
    if pa.types.is_null(one.type) or pa.types.is_null(other.type):
        return (other if pa.types.is_null(one.type) else one).with_nullable(nullable)
    if _is_json(one) or _is_json(other):
        return _as_json(one)
    try:
        both = [pa.schema([pa.field("", field.type)]) for field in (one, other)]
        kind = pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return _as_json(one)
    if "decimal" in f"{one.type} {other.type}" and "decimal" not in str(kind):
        return _as_json(one)  # a float, and the cast to it is not checked
    metadata = one.metadata if one.metadata == other.metadata else None
    return pa.field(one.name, kind, nullable, metadata)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array in a wider type. Raises one of UNTYPED for a value that the type cannot hold exactly."""
    if array.type == kind:
        return array
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        children = [
            _cast(array.field(names.index(f.name)), f.type) if f.name in names else pa.nulls(len(array), f.type)
            for f in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    lists = {pa.ListArray: pa.int32(), pa.LargeListArray: pa.int64()}
    if type(array) in lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        made = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        values = _cast(array.values, kind.value_type)
        return made.from_arrays(array.offsets.cast(lists[made]), values, type=kind, mask=array.is_null())
    return array.cast(kind)


def _is_json(field: pa.Field) -> bool:
    return JSON.items() <= (field.metadata or {}).items()


def _as_json(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.string(), metadata=JSON)


def _binary(value: bytes) -> pa.Array:
    """The value as an array, without a copy: it may have a GiB."""
    offsets = pa.py_buffer(np.array([0, len(value)], dtype=np.int32).tobytes())
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(value)])


def _json(value: Any) -> str | None:
    """JSON text of a value, null for null; bytes are in base64, and other values of Arrow are their words."""
    if value is None:
        return None
    return json.dumps(
        value, ensure_ascii=False, default=lambda v: b64encode(v).decode() if isinstance(v, bytes) else str(v)
    )
