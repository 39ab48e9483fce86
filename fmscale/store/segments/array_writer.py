"""Writes one Zarr v3 array of `array.py`'s layout to local files, in one pass and bounded memory."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fmscale.errors import DataError, StoreError, StoreFull
from fmscale.store.backends.posix import write_all
from fmscale.store.digest import DataDigest, chunk_checksums
from fmscale.store.segments.array import ArrayLayout, ArraySpec, ShardInfo, encode_index, encode_metadata

FLUSH_BYTES = 2**20
"""Bytes of rows in a buffer, about: the checksums and the write find them in the processor's cache."""


@contextmanager
def scratch_errors(path: Path) -> Iterator[None]:
    """Raise the operating system's error about a scratch file as a StoreError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                "No space left for the scratch files of a segment",
                found=str(path),
                remedy="Free space there or choose another scratch directory; finished segments are kept.",
            ) from error
        raise StoreError(
            f"A scratch file cannot be written: {error.strerror}",
            found=str(path),
            remedy="Choose a scratch directory that this user can write.",
        ) from error


class ArrayWriter:
    """Appends rows to an array of shape (n, *rest) in `directory/name`; `close` completes it.

    `inner_bytes` is the size of an inner chunk, `shard_bytes` the size of the data in a full shard; both are
    rounded down to whole rows and whole chunks. An array that fits into one shard gets a shard of its own
    size, so that small arrays have small indexes. Raises DataError for rows of another shape or type.
    """

    def __init__(
        self, directory: Path, name: str, dtype: str, rest: tuple[int, ...], inner_bytes: int, shard_bytes: int
    ) -> None:
        self.name = name
        self.rows = 0
        self._folder = directory / name
        stored = np.dtype(dtype).newbyteorder("<")
        row_bytes = int(stored.itemsize * np.prod(rest, dtype=np.int64))
        self.inner = inner = max(1, inner_bytes // row_bytes)
        shard = inner * max(1, shard_bytes // (inner * row_bytes))
        self._layout = ArrayLayout(shape=(0, *rest), dtype=stored.name, inner=inner, shard=shard)
        self._buffer = np.zeros((inner * max(1, FLUSH_BYTES // (inner * row_bytes)), *rest), dtype=stored)
        self._filled = 0
        self._file: BinaryIO | None = None
        self._digest = DataDigest()
        self._chunks = 0
        self._sums: list[np.ndarray] = []
        self._shards: list[ShardInfo] = []
        with scratch_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def append(self, rows: np.ndarray) -> None:
        """Append rows of shape (k, *rest)."""
        rest = self._layout.shape[1:]
        if rows.ndim == 0 or rows.shape[1:] != rest or rows.dtype != self._buffer.dtype:
            raise DataError(
                f"Rows do not fit into the array {self.name}",
                found=(rows.shape, rows.dtype.name),
                remedy=f"Give {self._layout.dtype} rows of shape {('k', *rest)}.",
            )
        taken = 0
        while taken < len(rows):
            step = min(len(rows) - taken, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + step] = rows[taken : taken + step]
            self._filled += step
            taken += step
            if self._filled == len(self._buffer):
                self._write(self._buffer.data.cast("B"))
                self._filled = 0
        self.rows += len(rows)

    def close(self) -> ArraySpec:
        """Pad the last chunk with zeros, write the last index and `zarr.json`."""
        if self._filled:
            whole = -(-self._filled // self._layout.inner) * self._layout.inner
            self._buffer[self._filled : whole] = 0
            self._write(self._buffer[:whole].data.cast("B"))
            self._filled = 0
        shard = self._layout.shard if self._shards else self._layout.inner * max(1, self._chunks)
        self._layout = replace(self._layout, shape=(self.rows, *self._layout.shape[1:]), shard=shard)
        if self._file is not None:
            self._finish_shard()
        with scratch_errors(self._folder):
            (self._folder / "zarr.json").write_bytes(encode_metadata(self._layout, {}))
        sums = np.concatenate([np.empty(0, dtype=np.uint32), *self._sums])
        return ArraySpec(name=self.name, layout=self._layout, shards=tuple(self._shards), crc32c=sums)

    def discard(self) -> None:
        """Close the open file; the array stays incomplete."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, chunks: memoryview) -> None:
        """Write whole chunks, and start a new shard after each full shard."""
        while chunks:
            room = (self._layout.chunks_per_shard - self._chunks) * self._layout.chunk_bytes
            part, chunks = chunks[:room], chunks[room:]
            path = self._folder / self._layout.shard_key(len(self._shards))
            with scratch_errors(path):
                if self._file is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = path.open("wb", buffering=0)
                write_all(self._file, part)
            self._digest.update(part)
            self._sums.append(chunk_checksums(part, self._layout.chunk_bytes))
            self._chunks += len(part) // self._layout.chunk_bytes
            if self._chunks == self._layout.chunks_per_shard:
                self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._file is not None
        index = encode_index(self._chunks, self._layout.chunks_per_shard, self._layout.chunk_bytes)
        key = self._layout.shard_key(len(self._shards))
        with scratch_errors(self._folder / key):
            write_all(self._file, memoryview(index))
            self._file.close()
        self._digest.update(index)
        size = self._chunks * self._layout.chunk_bytes + len(index)
        self._shards.append(ShardInfo(key=f"{self.name}/{key}", bytes=size, digest=self._digest.hexdigest()))
        self._file, self._digest, self._chunks = None, DataDigest(), 0
