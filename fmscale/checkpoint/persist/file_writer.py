"""Writes one file to a store while its bytes become known, and computes its checksums on the way.

On a file system: an unnamed file (O_TMPFILE: a kill leaves nothing behind), two threads that each take the checksums of
an 8 MiB block and write it with O_DIRECT straight from the snapshot's pages (2.0 GB/s on one virtio disk with 2 cores,
against 1.1 to 1.5 with one thread), fsync, then names for it and its checksums and one fsync of the folder. On an
object store: one multipart upload.
"""

import errno
import mmap
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np

from fmscale.checkpoint.format.layout import PAGE, pages
from fmscale.checkpoint.format.names import SUMS
from fmscale.checkpoint.persist.stream import BLOCK_BYTES, Block, Stream
from fmscale.errors import AccessDenied
from fmscale.store.backends.posix import make_folders, sync_directory, translated
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import chunk_checksums
from fmscale.store.keys import TEMPORARY_PREFIX

THREADS = 2
"""One computes checksums while the other waits for the disk."""

_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR)
"""Errors of open(2) where a file system lacks O_DIRECT or O_TMPFILE."""
_scratch = threading.local()

Fill = Callable[[Stream], Iterable[Block]]
"""Adds all that is in a file to its stream, and closes that; gives the blocks as they are complete."""


def store_stream(
    backend: Backend, key: str, stream: Stream, fill: Fill, pool: Executor, *, digests: bool, exact: bool
) -> np.ndarray | None:
    """Store what `fill` makes of the stream under `key`, and its checksums beside it if `digests` are wanted;
    both are durable when this returns. The checksums; an empty array without digests; None where nothing was put
    behind the header, and nothing stored. With `exact` it is the stream's `most` bytes long.

    The pool has THREADS threads for it. Replaces what is there: only an earlier attempt at this very file can be.
    Raises StoreError, and what `fill` raises.
    """
    path = backend.local_path(key)
    if path is not None:
        return _store_local(backend, str(path), key, stream, fill, pool, digests, exact)
    for _ in fill(stream):
        pass
    if stream.empty:
        return None
    whole = stream.whole()
    sums = chunk_checksums(whole) if digests else _NONE
    backend.put(key, whole)
    if digests:
        backend.put(key + SUMS, sums.astype("<u4").tobytes())
    return sums


def publish_unsynced(path: str, key: str, data: bytes) -> bool:
    """Make a whole small file appear under a name that nothing has, for other processes to see and not to outlast
    a crash. True if it holds `data` then, whoever made it. Raises StoreError.
    """
    with translated(key, writing=True):
        file = _open_new(os.path.dirname(path), direct=False)
        try:
            _write_all(file.descriptor, memoryview(data), 0)
            try:
                file.publish(path, replace=False)
            except FileExistsError:
                with open(path, "rb") as there:
                    return there.read() == data
        finally:
            file.close()
    return True


_NONE = np.zeros(0, dtype=np.uint32)


@dataclass(kw_only=True)
class _File:
    """A file that has no name yet."""

    descriptor: int
    temporary: str
    """Its name until then, on file systems without O_TMPFILE."""
    direct: bool

    def publish(self, path: str, *, replace: bool = True) -> None:
        """Give it its name, in place of another file of this name; or raise FileExistsError where there is one."""
        if self.temporary and replace:
            os.rename(self.temporary, path)
            self.temporary = ""
            return
        if self.temporary:
            os.link(self.temporary, path, follow_symlinks=False)
            return
        if replace:
            with suppress(FileNotFoundError):
                os.unlink(path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Only with a folder's descriptor does Python call linkat(2), which can follow the link in /proc.
            os.link(f"/proc/self/fd/{self.descriptor}", os.path.basename(path), dst_dir_fd=folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """It is gone unless it was published."""
        os.close(self.descriptor)
        if self.temporary:
            with suppress(FileNotFoundError):
                os.unlink(self.temporary)


def _store_local(
    backend: Backend, path: str, key: str, stream: Stream, fill: Fill, pool: Executor, digests: bool, exact: bool
) -> np.ndarray | None:
    if getattr(backend, "read_only", False):
        raise AccessDenied("the store is open for reading only", found=key, remedy="Open it without read_only.")
    folder = os.path.dirname(path)
    files: list[_File] = []
    with translated(key, writing=True):
        make_folders(folder)
        try:
            files.append(_open_new(folder, direct=True))
            sums = _write_stream(files[0], stream, fill, pool, digests, exact)
            if stream.empty:
                return None
            os.ftruncate(files[0].descriptor, stream.nbytes)
            if digests:
                files.append(_open_new(folder, direct=False))
                _write_all(files[1].descriptor, memoryview(sums.astype("<u4").tobytes()), 0)
            for file in files:
                os.fsync(file.descriptor)
            for file, name in zip(files, (path, path + SUMS), strict=False):
                file.publish(name)
        finally:
            for file in files:
                file.close()
        sync_directory(folder)
    backend.requests.add("put", stream.nbytes)
    if digests:
        backend.requests.add("put", 4 * len(sums))
    return sums


def _write_stream(file: _File, stream: Stream, fill: Fill, pool: Executor, digests: bool, exact: bool) -> np.ndarray:
    """Fill the file from the stream; the checksums."""
    found: dict[int, np.ndarray] = {}
    reserving, reserved = threading.Lock(), 0

    def reserve(end: int) -> None:
        """Have space up to `end`, and for no byte that may not come: a lack of it shows early."""
        nonlocal reserved
        with reserving:
            if reserved < end:
                os.posix_fallocate(file.descriptor, reserved, pages(end) - reserved)
                reserved = pages(end)

    def write(start: int, size: int) -> None:
        block = stream.block(start, size, _own_scratch)
        if digests:
            found[start] = chunk_checksums(block)
        if file.direct and size % PAGE:
            # O_DIRECT takes whole pages; the file is cut to its length afterwards.
            scratch = _own_scratch()
            scratch[:size] = block
            block = scratch[: pages(size)]
        reserve(max(stream.nbytes, start + block.nbytes))
        _write_all(file.descriptor, block, start)

    if exact:
        reserve(stream.most)
    writes: deque[Future[None]] = deque()
    try:
        for block in fill(stream):
            writes.append(pool.submit(write, *block))
            while writes and writes[0].done():
                writes.popleft().result()
        while writes:
            writes.popleft().result()
    finally:
        # Whatever happened, nobody may write to the descriptor once this returns.
        for one in writes:
            one.cancel()
        wait(writes)
    return np.concatenate([found[start] for start in sorted(found)]) if found else _NONE


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(descriptor, data[done:], start + done)


def _own_scratch() -> memoryview:
    """This thread's block, at a page; kept, as pages are touched for the first time at a third of the speed."""
    if not hasattr(_scratch, "map"):
        _scratch.map = mmap.mmap(-1, BLOCK_BYTES)
    return memoryview(_scratch.map)


def _open_new(folder: str, *, direct: bool) -> _File:
    """A new file in the folder, O_DIRECT if that is wanted and offered.

    NFS, Lustre and overlays have no O_TMPFILE, older tmpfs no O_DIRECT.
    """
    flags = (os.O_DIRECT, 0) if direct else (0,)
    named = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    for temporary, flag in product(("", named), flags):
        kind = os.O_CREAT | os.O_EXCL if temporary else os.O_TMPFILE
        try:
            descriptor = os.open(temporary or folder, os.O_RDWR | os.O_CLOEXEC | kind | flag, 0o644)
            return _File(descriptor=descriptor, temporary=temporary, direct=bool(flag))
        except OSError as error:
            if temporary:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)  # a file system that refuses O_DIRECT may have created the file before
            if error.errno not in _NOT_OFFERED or (temporary and not flag):
                raise
    raise AssertionError("the last attempt returned or raised")
