"""Opening input files, here or on any store that `open_store` knows; always as a seekable file."""

import io
import os
from pathlib import Path
from typing import BinaryIO, Protocol

from fmscale.data.ingest.sources import File
from fmscale.errors import AccessDenied, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store

READ_AHEAD = 4 << 20
"""Bytes of a range request to a remote store: at 100 MB/s, 40 ms a request hides a latency of 10 ms."""


class Files(Protocol):
    """Where the files of one listing root are opened."""

    def open(self, file: File, ahead: int = READ_AHEAD) -> BinaryIO:
        """The file, seekable; remote ones are read `ahead` bytes at a time. Raises DataError if its size or
        time is another than when it was listed.
        """
        ...


class LocalFiles:
    """Files below a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, file: File, ahead: int = READ_AHEAD) -> BinaryIO:
        """The file below the folder."""
        path = self.folder / file.name
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


class StoreFiles:
    """Files below a store's URL, read by ranges."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def open(self, file: File, ahead: int = READ_AHEAD) -> BinaryIO:
        """The object below the URL."""
        found = self.backend.head(file.name)
        if (found.bytes, round(found.modified * 1000)) != (file.bytes, file.changed):
            how = f"{found.bytes} bytes now, {file.bytes} when it was listed"
            raise _changed(f"{file.name} in {self.backend.url}", how)
        raw = RangeFile(self.backend, file.name, file.bytes)
        return io.BufferedReader(raw, min(ahead, max(file.bytes, 1)))


class RangeFile(io.RawIOBase):
    """An object of a store as a raw file; each read is a range request."""

    def __init__(self, backend: Backend, key: str, size: int) -> None:
        super().__init__()
        self._backend = backend
        self._key = key
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The next byte that is read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the object goes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        if count:
            self._backend.read_into(self._key, self._place, view[:count])
            self._place += count
        return count


def open_files(root: str) -> Files:
    """The files below a listing root (`sources.Root.url`): a path of this machine or a store's URL."""
    if "://" in root:
        return StoreFiles(open_store(root, read_only=True))
    return LocalFiles(Path(root))


def _changed(name: str, how: str) -> DataError:
    """The error of an input that is no longer what was listed."""
    return DataError(
        "An input file changed while it was ingested",
        found=f"{name}: {how}",
        remedy="Run again once the inputs stand still: that lists them anew. Nothing was committed.",
    )
