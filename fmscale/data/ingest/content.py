"""Hashes of the content of documents and records, and the tally of a file's documents.

The hash of a content decides its split, so that exact copies never lie in both. A file's tally says which documents
it held: the sum over its documents does not depend on the parts and units in which they were read, and the tally of
the first documents shows that a file has only grown. No hash here defends against people who look for collisions: two
texts of one hash share a split, and a file of one tally counts as known.
"""

import heapq
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]

SKETCH = 8
"""Least hashes kept of a file: two files that share half of their documents share one of 8 in 99 % of cases."""

NUMBER, LIST, STRUCT, OTHER, BYTES = map(xxhash.xxh3_64_intdigest, (b"1", b"[", b"{", b"?", b"b"))
"""Marks of types, so that `1`, `"1"` and `[1]` differ."""

MASK = 2**64 - 1


data_hash = xxhash.xxh3_64_intdigest
"""The hash of a document: of the UTF-8 bytes of its text."""


def text_hash(text: str) -> int:
    """The hash of a text as a document."""
    return data_hash(text.encode())


def row_hashes(batch: pa.RecordBatch) -> U64:
    """The hash of each record: columns that are null or missing count alike, and so do 1 and 1.0.

    The types of columns do not count, because they depend on the records that were read together.
    """
    return _mix(_struct_hashes(batch.schema, batch.columns, len(batch)))


@dataclass(kw_only=True, slots=True)
class Tally:
    """Documents of a file, or of a part of it."""

    documents: int = 0
    stop: int = 0
    """Place behind the last document: bytes of the uncompressed file, or rows."""
    digest: int = 0
    """Sum, modulo 2^64, of a hash of each document's start and content."""
    sketch: list[int] = field(default_factory=list)
    """The least hashes of contents, sorted."""

    def add(self, starts: ArrayLike, stops: ArrayLike, contents: U64) -> None:
        """Count documents."""
        if len(contents):
            places = np.asarray(starts, dtype=np.uint64)
            digest = int(_mix(contents ^ _mix(places)).sum(dtype=np.uint64))
            least = [int(value) for value in np.unique(contents)[:SKETCH]]
            stop = int(np.max(np.asarray(stops)))
            self.merge(Tally(documents=len(contents), stop=stop, digest=digest, sketch=least))

    def merge(self, other: "Tally") -> None:
        """Count the documents of another part."""
        self.documents += other.documents
        self.stop = max(self.stop, other.stop)
        self.digest = (self.digest + other.digest) & MASK
        self.sketch = heapq.nsmallest(SKETCH, {*self.sketch, *other.sketch})

    def same(self, other: "Tally") -> bool:
        """True if both have the same documents at the same places."""
        return (self.documents, self.digest) == (other.documents, other.digest)


def _mix(values: U64) -> U64:
    """The finalizer of splitmix64, which spreads each bit over all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _struct_hashes(fields: Any, columns: list[pa.Array], rows: int) -> U64:
    total = np.full(rows, STRUCT, dtype=np.uint64)
    for field_, column in zip(fields, columns, strict=True):
        name = np.uint64(text_hash(field_.name))
        values = _json_hashes(column) if (field_.metadata or {}).get(b"fmscale.json") else _hashes(column)
        total += np.where(_valid(column), _mix(values ^ name), np.uint64(0))
    return total


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = np.asarray(pc.is_valid(column).to_numpy(zero_copy_only=False), dtype=np.bool_)
    return valid


def _json_hashes(column: pa.Array) -> U64:
    """Hashes of values that have no type in common and are kept as JSON texts."""
    values = [None if text is None else json.loads(text) for text in column.to_pylist()]
    return np.array([_value_hash(value) for value in values], dtype=np.uint64)


def _value_hash(value: Any) -> int:
    """The hash of a parsed JSON value: that of `_hashes` for the same value in a column."""
    if isinstance(value, dict):
        names = [text_hash(name) for name, part in value.items() if part is not None]
        parts = [_value_hash(part) for part in value.values() if part is not None]
        mixed = _mix(np.array(parts, dtype=np.uint64) ^ np.array(names, dtype=np.uint64))
        return (STRUCT + int(mixed.sum(dtype=np.uint64))) & MASK
    if isinstance(value, list):
        parts = [0 if part is None else _value_hash(part) for part in value]
        return int(_list_hashes(np.array(parts, dtype=np.uint64), np.array([len(parts)]))[0])
    return int(_hashes(pa.array([value]))[0]) if not _is_huge(value) else text_hash(str(value))


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _list_hashes(parts: U64, lengths: NDArray[np.int64]) -> U64:
    """Hashes of lists, of which `parts` are the items one after another."""
    stops = np.cumsum(lengths)
    inside = np.arange(len(parts)) - np.repeat(stops - lengths, lengths)
    mixed = _mix(parts + _mix(inside.astype(np.uint64) + np.uint64(1)))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)))
    hashes: U64 = sums[stops] - sums[stops - lengths] + _mix(lengths.astype(np.uint64) ^ np.uint64(LIST))
    return hashes


def _hashes(column: pa.Array) -> U64:
    """The hash of each value; anything for null."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _hashes(column.storage)
    if pa.types.is_dictionary(kind):
        return _hashes(column.dictionary_decode())
    if pa.types.is_null(kind):
        return np.zeros(len(column), dtype=np.uint64)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _number_hashes(column)
    if pa.types.is_struct(kind):
        return _struct_hashes(kind, column.flatten(), len(column))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        items = column.flatten()
        return _list_hashes(np.where(_valid(items), _hashes(items), np.uint64(0)), lengths)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _bytes_hashes(column.cast(pa.large_string()), 0)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _bytes_hashes(column.cast(pa.large_binary()), BYTES)
    texts = (str(value).encode() for value in column.to_pylist())
    return np.fromiter((xxhash.xxh3_64_intdigest(text, OTHER) for text in texts), np.uint64, len(column))


def _number_hashes(column: pa.Array) -> U64:
    if pa.types.is_floating(column.type):
        floats = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
        whole = (floats == np.floor(floats)) & (np.abs(floats) < 2.0**63)
        bits = np.where(whole, np.where(whole, floats, 0).astype(np.int64).view(np.uint64), floats.view(np.uint64))
        return _mix(bits ^ np.uint64(NUMBER))
    values = column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy(zero_copy_only=False)
    mark = np.uint64(OTHER if pa.types.is_boolean(column.type) else NUMBER)
    return _mix(values.astype(np.int64 if values.dtype != np.uint64 else np.uint64).view(np.uint64) ^ mark)


def _bytes_hashes(column: pa.Array, seed: int) -> U64:
    ends = np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, column.offset * 8).tolist()
    data = memoryview(column.buffers()[2] or b"")
    spans = pairwise(ends)
    return np.fromiter((xxhash.xxh3_64_intdigest(data[a:b], seed) for a, b in spans), np.uint64, len(column))
