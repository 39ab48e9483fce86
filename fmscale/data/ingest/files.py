"""Input files, opened as seekable files here or on any store that `open_store` knows."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, Item, read
from fmscale.data.ingest.sources import File
from fmscale.errors import AccessDenied, CorruptData, DataError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store

READ_AHEAD = 4 << 20
"""Bytes of a range request to a remote store: at 100 MB/s a request takes 40 ms and hides a latency of 10 ms."""


Opener = Callable[[File], AbstractContextManager[BinaryIO]]
"""Opens a listed file for reading, seekable. Raises DataError before the first byte, and again behind the last one, if
its size or time has changed since the listing; Unreadable if the system refuses the file or a part of it.
"""


class Unreadable(Exception):
    """A file without the right to read it, or on a damaged disk."""


def open_files(root: str, ahead: int = READ_AHEAD) -> Opener:
    """The opener for files below a listing root (`sources.Root.url`): a folder of this machine or a store's URL.

    Objects of a store are read `ahead` bytes at a time.
    """
    if "://" in root:
        return partial(_open_object, open_store(root, read_only=True), ahead)
    return partial(_open_local, Path(root))


def read_file(opener: Opener, file: File, part: FilePart) -> Iterator[Item]:
    """The documents or records of a part of a file; a file that cannot be read is named as such."""
    try:
        with opener(file) as content:
            yield from read(content, part)
    except Unreadable as error:
        yield Bad("unreadable", str(error))


@contextmanager
def _open_local(folder: Path, file: File) -> Iterator[BinaryIO]:
    path = folder / file.name

    def check() -> None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _changed(str(path), "it is gone") from error
        except OSError as error:
            raise Unreadable(error.strerror) from error
        _compare(str(path), file, status.st_size, status.st_mtime_ns // 1_000_000)

    check()
    try:
        with path.open("rb") as opened:
            yield opened
    except Exception as error:
        check()
        if isinstance(error, OSError):
            raise Unreadable(error.strerror) from error
        raise
    check()


@contextmanager
def _open_object(backend: Backend, ahead: int, file: File) -> Iterator[BinaryIO]:
    where = f"{file.name} in {backend.url}"
    try:
        yield io.BufferedReader(_RangeFile(backend, file.name, file.bytes), min(ahead, max(file.bytes, 1)))
        # Asked once, behind the last byte: before the first it would cost a request more and promise less.
        info = backend.head(file.name)
    except (ObjectNotFound, CorruptData) as error:
        raise _changed(where, f"{error.cause} ({error.found})") from error
    except AccessDenied as error:
        raise Unreadable(error.cause) from error
    _compare(where, file, info.bytes, round(info.modified * 1000))


def _compare(name: str, file: File, size: int, changed: int) -> None:
    """Raise DataError with the difference between a file and its listing."""
    differences = [f"{size} bytes, {file.bytes} when it was listed"] if size != file.bytes else []
    if changed != file.changed:
        differences.append(f"last changed {(changed - file.changed) / 1000:g} s after the time in the listing")
    if differences:
        raise _changed(name, "; ".join(differences))


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
