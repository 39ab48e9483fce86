"""Sizes of a segment's records, read in order. Damage and bad records cost themselves alone: their size is 0."""

import json
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmscale.config.reader.refusals import nearest
from fmscale.data.samples.protocol import BadRecord, Record, Spec
from fmscale.errors import ConfigError, CorruptData, FmscaleError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.manifest import Manifest, SegmentRow
from fmscale.store.segments.handle import read_rows
from fmscale.store.segments.records import FILE_SHIFT, RecordSegment, open_record_segment, read_records

WINDOW_BYTES = 2**22
"""Bytes of records that are read at once, about, unless a single record is larger."""
NAMES = 1000
"""Most bad records of a segment that its note names, in about 150 bytes each: users mend what they can find."""
DAMAGE = (CorruptData, ObjectNotFound)


def require_columns(backend: Backend, manifests: Sequence[Manifest], spec: Spec, where: str) -> None:
    """Raise ConfigError, with all columns, if no commit's first segment has a column of the spec. Segments may differ,
    so a spec gets None for a column that only some have.
    """
    names: set[str] = set()
    for manifest in manifests:
        row = manifest.row(0)
        with suppress(*DAMAGE):
            names |= set(open_record_segment(backend, row.prefix, row.seal).schema.names)
        if not names.isdisjoint(spec.columns):
            return
    if names and spec.columns:
        close = nearest(spec.columns[0], names)
        raise ConfigError(
            f"the records in the {where} have no such column",
            found=", ".join(spec.columns),
            remedy=f"{close}{' ' if close else ''}They have {', '.join(sorted(names))}.",
        )


def segment_sizes(
    backend: Backend, row: SegmentRow, spec: Spec, advance: Callable[[int], object]
) -> tuple[NDArray[np.uint32], str]:
    """Sizes of a segment's records in order, and a note (JSON) on those of size 0, "" without any.

    `advance` receives numbers of records. Raises the errors of the store but not those of damaged or missing objects.
    """
    sizes = np.zeros(row.documents, dtype=np.uint32)
    empty, bad, names = 0, 0, list[list[str]]()
    segment = None

    def add_bad(first: int, count: int, error: Exception) -> None:
        nonlocal bad
        bad += count
        if len(names) < NAMES:
            names.append([_name(backend, row, segment, first, count), _reason(error)])

    try:
        segment = open_record_segment(backend, row.prefix, row.seal)
        for first, count, table in tables(backend, segment):
            for at, size in enumerate([] if isinstance(table, Exception) else _sizes(spec, table), first):
                if isinstance(size, Exception):
                    add_bad(at, 1, size)
                else:
                    sizes[at] = size
                    empty += size == 0
            if isinstance(table, Exception):
                add_bad(first, count, table)
            advance(count)
    except DAMAGE as error:
        add_bad(0, row.documents, error)
        advance(row.documents)
    return sizes, json.dumps({"empty": empty, "bad": bad, "first": names}) if empty or bad else ""


def tables(backend: Backend, segment: RecordSegment) -> Iterator[tuple[int, int, pa.Table | Exception]]:
    """(first record, records, table) of the segment in order; the error instead of a table that cannot be read."""
    for edges in _windows(backend, segment):
        first, end = edges[0], edges[-1]
        try:
            yield first, end - first, read_records(backend, segment, first, end - first)
        except ObjectNotFound as error:
            yield first, end - first, error
        except CorruptData:
            for first, end in pairwise(edges):
                try:
                    yield first, end - first, read_records(backend, segment, first, end - first)
                except DAMAGE as error:
                    yield first, end - first, error


def _windows(backend: Backend, segment: RecordSegment) -> Iterator[list[int]]:
    """Runs of batches of one file with about WINDOW_BYTES, as the first record of each batch and the run's end."""
    if not segment.documents:
        return
    for first, end in pairwise([*segment.first_record.tolist(), segment.documents]):
        start, stop = segment.index_rows(first, end - first)
        try:
            index = read_rows(backend, segment, "batches", start, stop - start)
        except DAMAGE:
            yield [first, end]
            continue
        edges = [*index[:, 2].tolist(), end]
        run = np.cumsum(index[:, 1]) // WINDOW_BYTES + (index[:, 0] >> np.uint64(FILE_SHIFT) << np.uint64(32))
        cuts = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(index)]
        yield from (edges[low : high + 1] for low, high in pairwise(cuts))


def _sizes(spec: Spec, table: pa.Table) -> list[int | Exception]:
    """The size of each record, or its error."""
    with suppress(Exception):  # found and named below, record by record
        records = records_of(spec, table, getattr(spec, "size_columns", None))
        many = getattr(spec, "sizes", None)
        return [_checked(size) for size in (many(records) if many else map(spec.size, records))]
    return [_size(spec, table.slice(row, 1)) for row in range(table.num_rows)]


def _size(spec: Spec, table: pa.Table) -> int | Exception:
    try:
        return _checked(spec.size(records_of(spec, table, getattr(spec, "size_columns", None))[0]))
    except Exception as error:
        return error


def _checked(size: Any) -> int:
    number = operator.index(size)
    if not 0 <= number < 2**32:
        raise BadRecord("a size lies outside 0 to 2**32 - 1", found=number, remedy="Mend the spec's `size`.")
    return number


def records_of(spec: Spec, table: pa.Table, columns: Sequence[str] | None = None) -> list[Record]:
    """Records of a table with the spec's columns, or some of these; None for a column that the table lacks."""
    columns = spec.columns if columns is None else columns
    values = {name: table.column(name).to_pylist() for name in columns if name in table.column_names}
    return [{name: values[name][row] if name in values else None for name in columns} for row in range(len(table))]


def _name(backend: Backend, row: SegmentRow, segment: RecordSegment | None, first: int, count: int) -> str:
    """The record's id, or its place where ids cannot be read."""
    if segment is not None and count == 1:
        with suppress(*DAMAGE):
            words = read_rows(backend, segment, "document_ids", first, 1)
            return words.astype("<u8").tobytes().hex()
    return f"records {first} to {first + count - 1} of {row.prefix}" if count > 1 else f"record {first} of {row.prefix}"


def _reason(error: Exception) -> str:
    if isinstance(error, FmscaleError):
        return f"{error.cause} ({error.found})" if error.found is not None else error.cause
    return f"{type(error).__name__}: {error}"
