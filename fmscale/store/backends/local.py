"""Objects as files of one directory tree: any POSIX file system with hard links and fsync.

Writing follows promise P3: a synced temporary file in the same directory, then `rename` (put) or `link`
(put_if_absent), then fsync of the directory. `link` fails if the name exists, so exactly one racing writer
wins, and no reader sees a half-written object. Listings hide the temporary names. A later writer into the
directory removes the temporary files of killed writers.
"""

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from fmscale.errors import ObjectNotFound, StoreError
from fmscale.store.backends.open_files import READING, OpenFiles
from fmscale.store.backends.posix import (
    copy,
    make_folders,
    read_full,
    remove_unlocked,
    sync_directory,
    translated,
    translation,
    write_all,
)
from fmscale.store.backends.protocol import Backend, ObjectInfo, Requests
from fmscale.store.keys import TEMPORARY_PREFIX, check_key, check_prefix, check_writable, missing

STALE_SECONDS = 3600.0
"""A temporary file is abandoned when it has not changed for an hour and no process holds its lock. The age
protects writers of other nodes on network file systems, where locks may not cross nodes."""

FOLDER_ATTEMPTS = 100
"""Attempts to make a folder that other processes remove as empty: far more than are ever needed."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class LocalBackend(Backend):
    """A `Backend` over one directory; the module describes its writes."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        """Open the directory, creating it unless read-only.

        Raises AccessDenied or StoreError where it cannot be created or is not a directory.
        """
        self.read_only = read_only
        self.requests = Requests()
        self._files = OpenFiles(self._path)
        self._checked: set[str] = set()
        self._swept: set[str] = set()
        self._durable: set[str] = set()
        with translated(str(root)):
            if not read_only and not root.exists():
                make_folders(os.path.abspath(root), self._durable)
            self._root = os.path.realpath(root)
            if not os.path.isdir(self._root):
                raise StoreError(
                    "the store's directory does not exist",
                    found=str(root),
                    remedy="Check the path; `fmscale ingest` and `fmscale train` make a store that is not there.",
                )
        self.url = Path(self._root).as_uri()

    def get(self, key: str) -> bytes:
        with translated(key), os.fdopen(os.open(self._path(key), READING), "rb", buffering=0) as file:
            data = file.read()
        self.requests.add("get", len(data))
        return data

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        try:  # not `with translated`, which costs 2 us
            file = self._files.get(key)
            length = read_full(file.descriptor, key, start, buffers)
        except OSError as error:
            raise translation(error, key) from error
        self.requests.add("get_range", length)

    def advise(self, key: str, start: int, length: int) -> None:
        with suppress(OSError):
            os.posix_fadvise(self._files.get(key).descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._write(key, lambda file: write_all(file, data), self._replace)
        self.requests.add("put", memoryview(data).nbytes)

    def put_file(self, key: str, path: Path) -> None:
        with translated(str(path)), path.open("rb") as source:
            self._write(key, lambda file: copy(source, file), self._replace)
            self.requests.add("put", source.tell())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.requests.add("put_if_absent", len(data))
        path = self._path(key)
        if not self.read_only and os.path.lexists(path):
            with translated(key):
                sync_directory(os.path.dirname(path))
            return False
        return self._write(key, lambda file: write_all(file, data), self._link)

    def head(self, key: str) -> ObjectInfo:
        self.requests.add("head")
        path = self._path(key)
        with translated(key):
            return _info(key, os.lstat(path))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.requests.add("list")
        prefix = check_prefix(prefix)
        return self._walk(prefix)

    def list_names(self, prefix: str = "") -> list[str]:
        self.requests.add("list")
        return sorted(entry.name for entry in self._entries(check_prefix(prefix)))

    def delete(self, key: str) -> None:
        check_writable(key, self.read_only)
        self.requests.add("delete")
        path = self._path(key)
        with translated(key), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
            self._files.forget(key)  # an open file would keep the object's space
            folder = os.path.dirname(path)
            sync_directory(folder)
            with suppress(OSError):  # as on object stores, no folder is without objects
                while folder != self._root:
                    os.rmdir(folder)
                    self._durable.discard(folder)
                    folder = os.path.dirname(folder)

    def local_path(self, key: str) -> Path | None:
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        """Path of a key's file. Its folders may not be symbolic links: a link could lead out of the store."""
        path = f"{self._root}/{check_key(key)}"
        self._check_folder(os.path.dirname(path), key)
        return path

    def _check_folder(self, folder: str, key: str) -> None:
        if folder in self._checked:
            return
        if os.path.realpath(folder) != folder:
            raise StoreError(
                "a folder of the key is a symbolic link",
                found=key,
                remedy="Open the link's target as the store, or mount it there instead of linking it.",
            )
        if os.path.isdir(folder):
            self._checked.add(folder)

    def _write(self, key: str, fill: Callable[[BinaryIO], object], publish: Callable[[str, str], bool]) -> bool:
        check_writable(key, self.read_only)
        path = self._path(key)
        folder = os.path.dirname(path)
        temporary = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        with translated(key, writing=True):
            try:
                with self._create(folder, temporary) as file:
                    # The lock shows the sweep that the writer lives; it is held until the file is published.
                    fcntl.flock(file, fcntl.LOCK_EX)
                    fill(file)
                    os.fsync(file.fileno())
                    done = publish(temporary, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            # Also when another writer won: the caller may build on that writer's object, so its name must last.
            sync_directory(folder)
            return done

    @staticmethod
    def _replace(temporary: str, path: str) -> bool:
        os.rename(temporary, path)
        return True

    @staticmethod
    def _link(temporary: str, path: str) -> bool:
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            # After a lost answer NFS may repeat the link and report that the name exists.
            return os.stat(temporary).st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreError(
                "this file system has no hard links, so entries cannot be created exactly once",
                found=os.path.dirname(path),
                remedy="Put the store on a POSIX file system (ext4, XFS, NFS, Lustre) or an object store.",
            ) from error
        return True

    def _create(self, folder: str, temporary: str) -> BinaryIO:
        """Create the temporary file in a folder that a concurrent delete may remove as empty."""
        for attempt in range(FOLDER_ATTEMPTS):
            with suppress(FileNotFoundError) if attempt + 1 < FOLDER_ATTEMPTS else nullcontext():
                make_folders(folder, self._durable)
                self._sweep(folder)
                return open(temporary, "xb", buffering=0)
        raise AssertionError("the last attempt returned or raised")

    def _sweep(self, folder: str) -> None:
        """Remove temporary files whose writer is gone, once per folder and process."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        now = time.time()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY_PREFIX):
                    with suppress(FileNotFoundError, BlockingIOError):
                        if now - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                            remove_unlocked(entry.path)

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        folder = f"{self._root}/{prefix}" if prefix else self._root
        self._check_folder(folder, prefix)
        with translated(prefix):
            try:
                with os.scandir(folder) as entries:
                    return [entry for entry in entries if not entry.name.startswith(TEMPORARY_PREFIX)]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        children: list[tuple[str, os.DirEntry[str]]] = []
        for entry in self._entries(prefix):
            key = f"{prefix}/{entry.name}" if prefix else entry.name
            # A folder sorts by its name with a slash, so that keys come in order.
            children.append((f"{key}/" if entry.is_dir(follow_symlinks=False) else key, entry))
        for key, entry in sorted(children, key=lambda child: child[0]):
            if key.endswith("/"):
                yield from self._walk(key[:-1])
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    yield _info(key, entry.stat(follow_symlinks=False))


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    if not stat.S_ISREG(status.st_mode):
        raise ObjectNotFound("no object under this key (a folder or link is there)", found=key, remedy=missing(key))
    return ObjectInfo(key=key, bytes=status.st_size, modified=status.st_mtime)
