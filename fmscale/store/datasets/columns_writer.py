"""Writer of derived columns, a part at a time, from any number of processes; `columns.py` describes their format.

A part's name is a function of column and segment, so every writer of a part writes the same bytes to the same key.
A killed job continues when it runs again: it leaves out the parts that are there.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fmscale.errors import Conflict, CorruptData, DataError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import created, store_once
from fmscale.store.datasets.columns import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    HEADER_KEY,
    INDEX,
    READS,
    Column,
    open_column,
    part_key,
    value_bytes,
)
from fmscale.store.datasets.manifest import Manifest
from fmscale.store.digest import canonical_json, chunk_checksums, data_digest, metadata_digest


class Layout(NamedTuple):
    """A column that a job makes."""

    name: str
    maker: str
    """Text of all that the values depend on."""
    dtype: str
    """Numpy name of the values' type."""
    shape: tuple[int, ...] = ()


def finished_parts(backend: Backend, key: str) -> set[int]:
    """Segments of the column in the folder `key` whose values are stored."""
    return {int(name[:-4]) for name in backend.list_names(key) if name.endswith(".bin")}


def put_part(backend: Backend, key: str, segment: int, values: np.ndarray, note: str = "") -> None:
    """Store the values of a segment, and a note for people on it; durable when this returns.

    Raises Conflict if another writer stored other values. Of several writers' notes the first one stays.
    """
    if note:
        created(backend, _note_key(key, segment), note.encode())
    if not store_once(backend, part_key(key, segment), values.astype(values.dtype.newbyteorder("<")).tobytes()):
        raise Conflict(
            f"{part_key(key, segment)} has other values than this writer made of the same segment",
            found=values.dtype.name,
            remedy="The maker's text must change with every change of a value: give it a new version.",
        )


def finish_column(backend: Backend, key: str, layout: Layout, manifest: Manifest) -> Column:
    """Make a column visible whose parts are all stored, and return it.

    The parts are read back, so that a job is the same in one run and in ten. Raises DataError if parts are missing,
    CorruptData for a part of another size than its segment's, and Conflict if the column is there with other values.
    """
    names = set(backend.list_names(key))
    missing = [n for n in range(manifest.segments) if part_key("", n)[1:] not in names]
    if missing:
        raise DataError(
            f"The column {key} lacks the values of {len(missing)} segments",
            found=missing[:5],
            remedy="Run the job again: it makes the missing parts.",
        )
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    chunk_values = max(1, CHUNK_BYTES // value_bytes(dtype, layout.shape))

    def describe(segment: int) -> tuple[Any, ...]:
        data, records = backend.get(part_key(key, segment)), manifest.row(segment).documents
        if len(data) != records * value_bytes(dtype, layout.shape):
            raise CorruptData(
                f"{part_key(key, segment)} has not the size of its segment's values",
                found=f"{len(data)} bytes for {records} records",
                remedy="Delete the object and run the job again.",
            )
        sums = chunk_checksums(data, chunk_values * value_bytes(dtype, layout.shape)).tolist()
        values = np.frombuffer(data, dtype=dtype)
        # fmin and fmax pass over NaN, which is outside no range.
        ends = (np.fmin.reduce(values), np.fmax.reduce(values)) if records and not layout.shape else (0, 0)
        note = backend.get(_note_key(key, segment)).decode() if _note_key("", segment)[1:] in names else ""
        return records, bytes.fromhex(data_digest(data)), sums, *ends, note

    with ThreadPoolExecutor(READS) as pool:
        rows = list(pool.map(describe, range(manifest.segments)))
    number = pa.from_numpy_dtype(dtype)
    header = {"format_version": FORMAT_VERSION, "manifest": manifest.digest, **layout._asdict()}
    schema = pa.schema(
        [
            ("records", pa.uint64()),
            ("digest", pa.binary(16)),
            ("crc32c", pa.list_(pa.uint32())),
            ("least", number),
            ("most", number),
            ("note", pa.string()),
        ],
        metadata={HEADER_KEY: canonical_json({**header, "chunk_values": chunk_values})},
    )
    return _store_index(backend, key, schema, rows)


def _store_index(backend: Backend, key: str, schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> Column:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    stream = sink.getvalue().to_pybytes()
    data = stream + metadata_digest(stream).encode()
    mine = Column(backend, key, data)
    if store_once(backend, f"{key}/{INDEX}", data):
        return mine
    # Another version of pyarrow may have written equal rows in other bytes.
    stored = open_column(backend, key)
    if stored is None:
        raise ObjectNotFound("The column was deleted meanwhile", found=key, remedy="Run the job again.")
    if (stored.header, stored.index) != (mine.header, mine.index):
        raise Conflict(
            f"The column {key} is there already with other values",
            found=stored.header,
            remedy="The maker's text must change with every change of a value: give it a new version.",
        )
    return stored


def _note_key(key: str, segment: int) -> str:
    return f"{key}/{segment:08d}.note"
