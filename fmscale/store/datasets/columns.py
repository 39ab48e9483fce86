"""Derived columns: a value for each record, or document, of one split of a commit, worked out from the record.

    datasets/NAME/columns/MANIFEST/COLUMN-MAKER/00000000.bin ...   values of each segment, little-endian, write-once
    datasets/NAME/columns/MANIFEST/COLUMN-MAKER/column.arrows      written last: sizes, digests, checksums of all parts

MANIFEST is the digest of the split's manifest; MAKER is the digest of a text that names all that the values depend on.
A column exists once it has its last object. `column.arrows` is an Arrow stream, a row a part, and its own digest behind
the stream, so that every byte of a column is verified although no log names it.

Values are read in chunks of about 16 KiB, as tokens are: a step's samples lie in many segments, and a part of the sizes
of 10^6 records has 4 MB.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmscale.errors import CorruptData, DataError
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.datasets.object_check import Expected, chunks_of
from fmscale.store.digest import crc32c, data_digest, metadata_digest
from fmscale.store.segments.seal import check_version, columns_folder

FORMAT_VERSION = 1
"""Version of new columns; every version up to it can be read."""
INDEX = "column.arrows"
"""Name of a column's last object."""
CHUNK_BYTES = 2**14
"""Bytes under one crc32c, about: a chunk has whole values, at least one."""
MEMORY_BYTES = 2**26
"""Bytes of values that a column keeps: the sizes of 16 million records."""
READS = 8
"""Reads at the same time, to hide the latency of a remote store."""
HEADER_KEY = b"fmscale"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
DIGEST_DIGITS = 32

U64 = NDArray[np.uint64]


class Column:
    """A complete column; safe across threads. Reads chunks at their first use, and keeps `memory_bytes` of them."""

    def __init__(self, backend: Backend, key: str, data: bytes, memory_bytes: int = MEMORY_BYTES) -> None:
        """`data` is the content of the column's last object. Raises CorruptData, or FormatError for a later version."""
        where = f"{key}/{INDEX}"
        self.header, self.index = _decode(data, where)
        name, maker, manifest = (self.header[field] for field in ("name", "maker", "manifest"))
        if not key.endswith(f"/{manifest}/{_folder(name, maker)}"):
            raise _damaged(where, f"it is the column {name} of manifest {manifest}, made by {maker}")
        self.key = key
        """Folder of the column on the store."""
        self.name: str = name
        self.dtype = np.dtype(self.header["dtype"])
        """Type of the values."""
        self.shape: tuple[int, ...] = tuple(self.header["shape"])
        """Shape of a value; () for a number."""
        counts = self.index.column("records").to_numpy().astype(np.uint64)
        self.records = int(counts.sum())
        """Records, or documents, of the split."""
        self._value_bytes = value_bytes(self.dtype, self.shape)
        self.bytes = self.records * self._value_bytes
        """Bytes of all values."""
        self._backend = backend
        self._chunk_values: int = self.header["chunk_values"]
        self._counts = counts
        self._starts = np.cumsum(counts, dtype=np.uint64) - counts
        self._chunks = self.index.column("crc32c").offsets.to_numpy()
        self._crc32c = self.index.column("crc32c").values.to_numpy()
        self._lock = Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._kept_most = max(1, memory_bytes // (self._chunk_values * self._value_bytes))

    def take(self, positions: U64) -> np.ndarray:
        """Values at these positions among all records of the split, any number in any order.

        Raises DataError outside the split, CorruptData for damaged values, and the errors of the store.
        """
        positions = np.asarray(positions, dtype=np.uint64)
        out = np.empty((len(positions), *self.shape), dtype=self.dtype)
        if not len(positions):
            return out
        if int(positions.max()) >= self.records:
            raise DataError(
                f"Position outside the column {self.key}", found=int(positions.max()), remedy=f"It has {self.records}."
            )
        parts = np.searchsorted(self._starts, positions, side="right") - 1
        offsets = (positions - self._starts[parts]).astype(np.int64)
        chunks = self._chunks[parts] + offsets // self._chunk_values
        order = np.argsort(chunks, kind="stable")
        edges = np.flatnonzero(np.diff(chunks[order])) + 1

        def fill(group: NDArray[np.intp]) -> None:
            values = self._chunk(int(parts[group[0]]), int(chunks[group[0]]))
            out[group] = values[offsets[group] % self._chunk_values]

        groups = np.split(order, edges)
        if len(groups) == 1 or self._backend.local_path(self.key) is not None:
            for group in groups:
                fill(group)
        else:
            with ThreadPoolExecutor(READS) as pool:
                list(pool.map(fill, groups))
        return out

    def outside(self, least: float, most: float) -> U64:
        """Positions, sorted, of numbers below `least` or above `most`. Reads only parts that have such a number."""
        if self.shape:
            raise DataError(
                f"The values of column {self.name} are not numbers", found=self.shape, remedy="Read them with `take`."
            )
        low, high = (self.index.column(name).to_numpy() for name in ("least", "most"))
        parts = np.flatnonzero(((low < least) | (high > most)) & (self._counts > 0))

        def find(part: int) -> U64:
            values = self.part(part)
            found: U64 = np.flatnonzero((values < least) | (values > most)).astype(np.uint64) + self._starts[part]
            return found

        with ThreadPoolExecutor(READS) as pool:
            return np.concatenate([np.empty(0, dtype=np.uint64), *pool.map(find, parts.tolist())])

    def part(self, segment: int) -> np.ndarray:
        """All values of a segment, verified by the part's digest."""
        expected = self.expected(segment)
        values = self._read(expected.key, 0, int(self._counts[segment]))
        if data_digest(values.view(np.uint8).data) != expected.digest:
            raise _damaged(expected.key, "its bytes do not match its digest")
        return values

    def notes(self) -> dict[int, str]:
        """The job's notes for people, by segment."""
        return {part: text for part, text in enumerate(self.index.column("note").to_pylist()) if text}

    def expected(self, segment: int) -> Expected:
        """The stored object of a segment's values, as the column has recorded it."""
        first, last = self._chunks[segment : segment + 2].tolist()
        size = int(self._counts[segment]) * self._value_bytes
        return Expected(
            key=part_key(self.key, segment),
            bytes=size,
            digest=self.index.column("digest")[segment].as_py().hex(),
            chunks=chunks_of(self._crc32c[first:last].tolist(), self._chunk_values * self._value_bytes, size),
        )

    def _chunk(self, part: int, chunk: int) -> np.ndarray:
        with self._lock:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
                return self._kept[chunk]
        first = (chunk - int(self._chunks[part])) * self._chunk_values
        key = part_key(self.key, part)
        values = self._read(key, first, min(self._chunk_values, int(self._counts[part]) - first))
        if crc32c(values.view(np.uint8).data) != int(self._crc32c[chunk]):
            raise _damaged(key, f"values from {first} on do not match their crc32c")
        with self._lock:
            self._kept[chunk] = values
            while len(self._kept) > self._kept_most:
                self._kept.popitem(last=False)
        return values

    def _read(self, key: str, first: int, count: int) -> np.ndarray:
        values = np.empty((count, *self.shape), dtype=self.dtype)
        if count:
            self._backend.read_into(key, first * self._value_bytes, values.reshape(-1).view(np.uint8).data)
        return values


def open_column(backend: Backend, key: str, memory_bytes: int = MEMORY_BYTES) -> Column | None:
    """The column in the folder `key`, or None as long as it is not complete.

    Raises CorruptData for a damaged column, and FormatError for a column of a later format_version.
    """
    data = find(backend, f"{key}/{INDEX}")
    return None if data is None else Column(backend, key, data, memory_bytes)


def column_key(dataset: str, manifest: str, name: str, maker: str) -> str:
    """Folder of the column `name` of the commit whose split has the manifest digest `manifest`; `maker` is the text of
    all that the values depend on. Raises DataError for a name that cannot be a folder's.
    """
    if not NAME.fullmatch(name):
        raise DataError(
            "A column cannot have this name",
            found=name,
            remedy="Use up to 32 lower-case letters, digits, - and _, starting with a letter or digit.",
        )
    return f"{columns_folder(dataset, manifest)}{_folder(name, maker)}"


def column_keys(backend: Backend, dataset: str, manifest: str) -> Iterator[str]:
    """Folders of the columns, complete or not, of the commit whose split has this manifest."""
    folder = columns_folder(dataset, manifest)
    return (folder + name.rstrip("/") for name in backend.list_names(folder))


def column_names(backend: Backend, dataset: str, manifest: str) -> list[str]:
    """Names of the complete columns of the commit whose split has this manifest."""
    keys = [key for key in column_keys(backend, dataset, manifest) if backend.exists(f"{key}/{INDEX}")]
    return sorted({key.rpartition("/")[2].rpartition("-")[0] for key in keys})


def part_key(key: str, segment: int) -> str:
    """Key of the values of a segment."""
    return f"{key}/{segment:08d}.bin"


def value_bytes(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    """Bytes of a value."""
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _folder(name: str, maker: str) -> str:
    return f"{name}-{metadata_digest(maker.encode())}"


def _decode(data: bytes, where: str) -> tuple[dict[str, Any], pa.RecordBatch]:
    """Header and rows of a column's last object, verified by the digest at its end."""
    stream, digest = data[:-DIGEST_DIGITS], data[-DIGEST_DIGITS:]
    if metadata_digest(stream).encode() != digest:
        raise _damaged(where, "its bytes do not match the digest at its end")
    try:
        reader = pa.ipc.open_stream(stream)
        header: dict[str, Any] = json.loads(reader.schema.metadata[HEADER_KEY])
        check_version(header, where, FORMAT_VERSION)
        index = reader.read_next_batch()
        index.validate(full=True)
        if value_bytes(np.dtype(header["dtype"]), header["shape"]) < 1 or header["chunk_values"] < 1:
            raise ValueError(f"chunks of {header['chunk_values']} values of {header['dtype']} {header['shape']}")
        missing = {"least", "most", "digest", "note"} - set(index.schema.names)
        if missing or not {"name", "maker", "manifest"} <= header.keys():
            raise ValueError(f"without {sorted(missing) or 'a name, maker or manifest'}")
        counts = index.column("records").to_numpy().astype(np.int64)
        chunks = np.diff(index.column("crc32c").offsets.to_numpy())
        if (counts < 0).any() or (chunks != -(-counts // header["chunk_values"])).any():
            raise ValueError(f"{chunks.tolist()[:4]} chunks for {counts.tolist()[:4]} values")
    except (pa.ArrowException, OSError, StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(where, repr(error)) from error
    return header, index


def _damaged(key: str, found: str) -> CorruptData:
    return CorruptData(
        f"The derived column in {key} is damaged",
        found=found,
        remedy="Restore the object from a copy, or delete the column's folder and derive the column again.",
    )
