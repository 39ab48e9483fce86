"""Records of messages in their one form, as blocks; a record without that form is counted by its reason and place."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmscale.data.chat.formats import SCHEMA, Fault, normal_form
from fmscale.data.ingest.blocks import BLOCK_BYTES, BLOCK_ROWS, RecordBlock, load, spill
from fmscale.data.ingest.formats import RawBatch, RawRecord
from fmscale.data.ingest.record import SkippedInput

Place = tuple[str, int, int]
"""Source name of a record, and its span in the file."""


def normal_blocks(
    items: Iterable[tuple[str, RawRecord | RawBatch | RecordBlock]],
    shape: str,
    folder: Path,
    skipped: SkippedInput,
) -> Iterator[RecordBlock]:
    """Blocks of the items (source name, item), in order."""
    rows: list[dict[str, Any]] = []
    places: list[Place] = []
    size = 0
    for (source, start, stop), where, values in _records(items):
        try:
            rows.append(normal_form(values, shape))
        except Fault as fault:
            skipped.add(fault.reason, f"{source}: {where} {start}: {fault}")
            continue
        places.append((source, start, stop))
        size += sum(map(len, rows[-1]["messages"]))
        if size >= BLOCK_BYTES or len(rows) == BLOCK_ROWS:
            yield _block(rows, places, folder)
            rows, places, size = [], [], 0
    if rows:
        yield _block(rows, places, folder)


def _block(rows: list[dict[str, Any]], places: list[Place], folder: Path) -> RecordBlock:
    sources, starts, stops = zip(*places, strict=True)
    return spill(pa.RecordBatch.from_pylist(rows, schema=SCHEMA), sources, starts, stops, folder)


def _records(
    items: Iterable[tuple[str, RawRecord | RawBatch | RecordBlock]],
) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Each record with its place, and the word for that: a byte of a file, or a row of a table."""
    for source, item in items:
        if isinstance(item, RawRecord):
            yield (source, item.start, item.stop), "byte", item.values
        elif isinstance(item, RawBatch):
            for row, values in enumerate(item.batch.to_pylist(), item.start):
                yield (source, row, row + 1), "row", values
        else:
            batch, origin = load(item)
            for values, place in zip(batch.to_pylist(), origin.to_pylist(), strict=True):
                yield (place["source"], place["start"], place["stop"]), "row", values
            Path(item.path).unlink()
