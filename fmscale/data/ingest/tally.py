"""The tally of a listed file's documents, read without tokenizing them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.blocks import gather, load
from fmscale.data.ingest.content import U64, Tally, data_hash, row_hashes
from fmscale.data.ingest.files import Unreadable
from fmscale.data.ingest.formats import Bad, RawDocument, RawRecord
from fmscale.data.ingest.messages import normal_blocks
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.record import SkippedInput

BATCH = 4096
"""Documents counted at once."""

Spans = Iterator[tuple[list[int], list[int], U64]]
"""Starts, stops and hashes of consecutive documents."""


def is_empty(item: Any) -> TypeGuard[RawDocument | RawRecord]:
    """True for an item that gives no document: an empty text, or a record without columns."""
    if isinstance(item, RawDocument):
        return not item.data
    return isinstance(item, RawRecord) and not item.values


def tally_file(reading: Reading, work: Work, folder: Path, below: int, shape: str) -> tuple[Tally, Tally]:
    """Tallies of all documents of a file, and of those that begin before `below`. `folder` is for records, `shape` that
    of records of messages.

    Raises Unreadable for a file that the system does not let this process read.
    """
    whole, first = Tally(), Tally()
    items = _documents(reading.documents(work, str(folder)))
    for starts, stops, contents in _records(items, folder, shape) if reading.field is None else _texts(items):
        whole.add(starts, stops, contents)
        count = int(np.searchsorted(starts, below))
        first.add(starts[:count], stops[:count], contents[:count])
    return whole, first


def _documents(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, Bad):
            if item.reason == "unreadable":
                raise Unreadable(item.where)
        elif not is_empty(item):
            yield item


def _texts(items: Iterator[Any]) -> Spans:
    batch: list[tuple[int, int, int]] = []
    for item in items:
        batch.append((item.start, item.stop, data_hash(item.data)))
        if len(batch) == BATCH:
            yield _columns(batch)
            batch = []
    if batch:
        yield _columns(batch)


def _columns(batch: list[tuple[int, int, int]]) -> tuple[list[int], list[int], U64]:
    starts, stops, contents = zip(*batch, strict=True)
    return list(starts), list(stops), np.array(contents, dtype=np.uint64)


def _records(items: Iterator[Any], folder: Path, shape: str) -> Spans:
    named = (("", item) for item in items)
    blocks = normal_blocks(named, shape, folder, SkippedInput()) if shape else gather(named, folder)
    for block in blocks:
        batch, origin = load(block)
        yield origin.column(1).to_pylist(), origin.column(2).to_pylist(), row_hashes(batch)
        Path(block.path).unlink()
