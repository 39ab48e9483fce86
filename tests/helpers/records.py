"""Small record segments for tests."""

import tempfile
from pathlib import Path

import pyarrow as pa

from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.records import RecordSegment, open_record_segment
from fmscale.store.segments.records_writer import RecordSegmentWriter
from fmscale.store.segments.seal import SealInfo


def write_records(
    store: Backend,
    prefix: str,
    table: pa.Table,
    *,
    rows: int = 7,
    first: int = 0,
    scratch: Path | None = None,
    **sizes: int,
) -> SealInfo:
    """Store the table as a sealed record segment, `rows` at a time; record i is row first + i of one of two sources."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RecordSegmentWriter(scratch or Path(folder), schema=table.schema, split="train", **sizes) as writer,
    ):
        row = first
        for batch in table.to_batches(max_chunksize=rows):
            numbers = list(range(row, row + batch.num_rows))
            sources = [f"{i % 2}.parquet" for i in numbers]
            writer.add(batch, list(map(record_id, numbers)), sources, numbers, [i + 1 for i in numbers])
            row += batch.num_rows
        return writer.finish(store, prefix)


def record_id(number: int) -> bytes:
    """Id of record `number`."""
    return bytes.fromhex(metadata_digest(b"%d" % number))


def write_and_open(store: Backend, prefix: str, table: pa.Table, rows: int = 7, **sizes: int) -> RecordSegment:
    """A new segment with the records of the table."""
    return open_record_segment(
        store, prefix, write_records(store, prefix, table, rows=rows, scratch=None, **sizes).digest
    )
