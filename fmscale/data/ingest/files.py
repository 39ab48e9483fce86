"""Input files, opened as seekable files here or on any store that `open_store` knows."""

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fmscale.data.ingest.sources import File
from fmscale.errors import AccessDenied, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store

READ_AHEAD = 4 << 20
"""Bytes of a range request to a remote store: at 100 MB/s a request takes 40 ms and hides a latency of 10 ms."""


Opener = Callable[[File], BinaryIO]
"""Opens a listed file for reading, seekable. Raises DataError if its size or time has changed since the listing."""


def open_files(root: str, ahead: int = READ_AHEAD) -> Opener:
    """The opener for files below a listing root (`sources.Root.url`): a folder of this machine or a store's URL.

    Objects of a store are read `ahead` bytes at a time.
    """
    if "://" in root:
        return partial(_open_object, open_store(root, read_only=True), ahead)
    return partial(_open_local, Path(root))


def _open_local(folder: Path, file: File) -> BinaryIO:
    path = folder / file.name
    try:
        opened = path.open("rb")
        status = os.fstat(opened.fileno())
    except PermissionError as error:
        raise AccessDenied(
            "An input file cannot be read", found=str(path), remedy="Give this user the right to read it."
        ) from error
    except OSError as error:
        raise _changed(str(path), error.strerror or "gone") from error
    if (status.st_size, status.st_mtime_ns // 1_000_000) != (file.bytes, file.changed):
        opened.close()
        raise _changed(str(path), f"{status.st_size} bytes now, {file.bytes} when it was listed")
    return opened


def _open_object(backend: Backend, ahead: int, file: File) -> BinaryIO:
    info = backend.head(file.name)
    if (info.bytes, round(info.modified * 1000)) != (file.bytes, file.changed):
        raise _changed(f"{file.name} in {backend.url}", f"{info.bytes} bytes now, {file.bytes} when it was listed")
    return io.BufferedReader(_RangeFile(backend, file.name, file.bytes), min(ahead, max(file.bytes, 1)))


class _RangeFile(io.RawIOBase):
    """An object of a store as a raw file: a read is a range request."""

    def __init__(self, backend: Backend, key: str, size: int) -> None:
        super().__init__()
        self._backend = backend
        self._key = key
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        if count:
            self._backend.read_into(self._key, self._place, view[:count])
            self._place += count
        return count


def _changed(name: str, how: str) -> DataError:
    return DataError(
        "An input file changed while it was ingested",
        found=f"{name}: {how}",
        remedy="Run again once the inputs stand still: that lists them anew. Nothing was committed.",
    )
