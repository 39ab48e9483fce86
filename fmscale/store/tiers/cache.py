"""The node cache: chunks in a directory, shared by the ranks of a node, within a byte limit, without a daemon.

Each object has a sparse file (`cache_file`). The first reader to lock a missing chunk fetches it; other readers wait
for the lock and then find the chunk. The kernel releases the lock of a dead process. DIRECTORY/usage counts the bytes
in use, under a lock; every eviction, and an opening without other users, count them anew from the chunks' states.
Eviction removes the chunks with the farthest next use (Belady's MIN: the future is known); a new chunk with the
farthest next use of all is not cached.

Correctness does not depend on the cache (P7): on a full, read-only or broken directory, or if a lock does not
come free, a read passes through to its source; a damaged file is a miss and is made anew. The caller verifies the
bytes and drops bad chunks. The directory must be local to this node (locks do not cross nodes).
"""

import errno
import logging
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np

from fmscale.store.backends.protocol import Requests
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.tiers.cache_file import (
    ABSENT,
    NEVER,
    NEXT_USE_BITS,
    PRESENT,
    RESERVED,
    CacheFile,
    CacheLayout,
    DamagedFile,
    cannot_punch,
    consecutive,
    create,
)
from fmscale.store.tiers.range_lock import PATIENCE, Locks, locked, try_lock, wait_lock

logger = logging.getLogger(__name__)

USED, SESSION = 0, 8
"""Offsets of the two numbers (uint64) in DIRECTORY/usage."""
_BYTE_USERS, _BYTE_USAGE = 1 << 30, (1 << 30) + 1
BATCH = 64
"""An eviction frees 1/64 of the limit beyond the need, so that a scan of all states (10^7 chunks: 1 s) runs
once per 1/64 of the cache written."""
_OLD = 1 << NEXT_USE_BITS
_ORPHAN = 1 << (NEXT_USE_BITS + 2)

Fetch = Callable[[int, int, memoryview], None]
"""Takes (first, count, buffer) and fills the buffer with `count` chunks from `first` on."""
Load = Callable[[int, int], Iterator[tuple[int, int, memoryview]]]
"""Takes (first, count) and gives these chunks as runs (first, count, bytes)."""


class NodeCache:
    """A cache directory in one process; safe across threads."""

    def __init__(self, directory: Path, limit_bytes: int, *, patience: float = PATIENCE) -> None:
        """Open or make the directory. Never raises for an unusable directory: `requests` counts the error.

        The cache keeps at most `limit_bytes` of chunks, over all processes (the smallest limit counts). A read
        waits at most `patience` seconds for another reader's fetch, then fetches by itself (see `Locks`).
        """
        self.requests = Requests()
        """Counts and bytes: hit, fetch, keep, bypass (fetched but not kept), evict, drop, error."""
        self._root = str(directory)
        self._usage = f"{self._root}/usage"
        self._limit = limit_bytes
        self._locks = Locks(patience)
        self._files: dict[str, CacheFile] = {}
        self._lock = Lock()
        self._max_open = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._session = 0
        self._full_for, self._full_bytes = NEVER + 1, 0
        self._warned = False
        try:
            self._join()
        except OSError as error:
            self._warn(error)

    def read(
        self,
        ref: ObjectRef,
        first_chunk: int,
        chunks: int,
        buffer: memoryview,
        fetch: Fetch,
        next_use: int,
        *,
        keep: bool = True,
    ) -> None:
        """Fill `buffer` (exactly the chunks' bytes); `fetch(first, count, part)` reads runs that the cache lacks.

        `next_use` is the time of the chunks' next read, in any unit that grows (sample numbers). Without `keep`,
        fetched chunks are not kept. Raises the errors of `fetch`.
        """
        use = min(max(next_use, 0), NEVER)
        file = self._file(ref, make=keep)
        if file is not None and self._read_present(file, first_chunk, chunks, (buffer,), use):
            return
        with ExitStack() as stack:
            runs = [(first_chunk, chunks, False)]
            try:
                if file is not None:
                    if keep:
                        stack.enter_context(self._locks.hold(file.path, first_chunk, chunks))
                    runs = file.runs(first_chunk, chunks)
            except OSError as error:
                self._forget(file, error)
                file = None
            for first, count, present in runs:
                start = (first - first_chunk) * ref.chunk_bytes
                part = buffer[start : start + count * ref.chunk_bytes]
                if present and file and self._read_present(file, first, count, (part,), use, locked=keep):
                    continue
                fetch(first, count, part)
                self._keep(file if keep else None, first, count, part, use)

    def serve(self, ref: ObjectRef, first_chunk: int, chunks: int, parts: Sequence[memoryview], next_use: int) -> bool:
        """Fill `parts` in order with the chunks' bytes; False, with undefined bytes in them, if the cache lacks any."""
        file = self._file(ref, make=False)
        return file is not None and self._read_present(file, first_chunk, chunks, parts, min(max(next_use, 0), NEVER))

    def wants(self, ref: ObjectRef, first_chunk: int, chunks: int) -> bool:
        """True if the cache lacks some of these chunks and is not known to be full."""
        file = self._file(ref)
        return file is not None and self._full_for > NEVER and not file.holds(first_chunk, chunks)

    def fill(self, ref: ObjectRef, first_chunk: int, chunks: int, load: Load, next_use: int) -> None:
        """Load the missing chunks and keep them. Raises the errors of `load`."""
        file = self._file(ref)
        if file is None:
            return
        use = min(max(next_use, 0), NEVER)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._locks.hold(file.path, first_chunk, chunks))
                runs = file.runs(first_chunk, chunks)
            except OSError as error:
                self._forget(file, error)
                return
            for first, count, present in runs:
                if not present:
                    for low, some, part in load(first, count):
                        self._keep(file, low, some, part, use)

    def drop(self, ref: ObjectRef, first_chunk: int, chunks: int) -> None:
        """Remove chunks whose cached copy is bad."""
        file = self._file(ref)
        if file is None:
            return
        try:
            with self._locks.hold(file.path, first_chunk, chunks), self._accounting() as usage:
                states = file.states()[first_chunk : first_chunk + chunks]
                usage[0] -= (chunks - states.count(ABSENT)) * ref.chunk_bytes
                with suppress(OSError):  # without holes the blocks stay, and later chunks overwrite them
                    file.take_away(first_chunk, chunks)
            self.requests.add("drop", chunks * ref.chunk_bytes)
        except OSError as error:
            self._forget(file, error)

    def _read_present(
        self, file: CacheFile, first: int, chunks: int, parts: Sequence[memoryview], use: int, locked: bool = False
    ) -> bool:
        try:
            if not file.read(first, chunks, parts, locked=locked):
                return False
            file.use(first, chunks, self._session | use)
        except OSError as error:
            self._forget(file, error)
            return False
        self.requests.add("hit", sum(part.nbytes for part in parts))
        return True

    def _keep(self, file: CacheFile | None, first: int, count: int, part: memoryview, use: int) -> None:
        """Keep fetched chunks, whose lock is held, if `_reserve` has room for them."""
        self.requests.add("fetch", part.nbytes)
        try:
            if file is not None and self._reserve(file, first, count, use):
                try:
                    file.write(first, part)
                    file.mark(first, count, PRESENT)
                except OSError as error:
                    self._give_back(file, first, count, error)
                    raise
                self.requests.add("keep", part.nbytes)
                return
        except OSError as error:
            self._forget(file, error)
        self.requests.add("bypass", part.nbytes)

    def _reserve(self, file: CacheFile, first: int, count: int, use: int) -> bool:
        """Count the chunks as used, evicting chunks with a later use; False if that does not make room."""
        with self._accounting() as usage:
            file.check()
            # A state left RESERVED by a dead writer is counted already.
            need = file.states()[first : first + count].count(ABSENT) * file.layout.chunk_bytes
            if usage[0] + need > self._limit:
                if need > self._limit or (use >= self._full_for and self._full_bytes > 0):
                    self._full_bytes -= need
                    return False
                usage[0] = self._evict(need, use)
                if usage[0] + need > self._limit:
                    self._full_for, self._full_bytes = use, self._limit // BATCH
                    return False
                self._full_for = NEVER + 1
            file.use(first, count, self._session | use)
            file.mark(first, count, RESERVED)
            usage[0] += need
        return True

    def _give_back(self, file: CacheFile, first: int, count: int, error: OSError) -> None:
        with self._accounting() as usage:
            usage[0] -= count * file.layout.chunk_bytes
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # The disk is smaller than the limit: from now on the bytes in use are the limit.
                self._limit = min(self._limit, usage[0])
            with suppress(OSError):
                file.take_away(first, count)

    def _evict(self, need: int, use: int) -> int:
        """Remove chunks with the farthest next use, but none with a use before `use`; returns the bytes in use.

        The caller holds the accounting lock. Chunks of earlier sessions go first: their sample numbers may
        belong to another run. Chunks that a writer is filling are passed over.
        """
        used = 0
        paths: list[str] = []
        sizes: list[int] = []
        keys, owners, places = [], [], []
        for file in self._every_file():
            states = np.frombuffer(file.states(), np.uint8)
            chunks = np.flatnonzero(states)
            used += len(chunks) * file.layout.chunk_bytes
            words = file.uses()[chunks]
            key = (words & np.uint64(NEVER)).astype(np.int64)
            key[words >> np.uint64(NEXT_USE_BITS) != self._session >> NEXT_USE_BITS] += _OLD
            key[states[chunks] == RESERVED] = _ORPHAN
            far = key >= use
            keys.append(key[far])
            places.append(chunks[far])
            owners.append(np.full(int(far.sum()), len(paths)))
            sizes.append(file.layout.chunk_bytes)
            paths.append(file.path)
        excess = used + need - self._limit
        if not paths or excess <= 0:  # the count was too high, after a kill
            return used
        key, owner, place = np.concatenate(keys), np.concatenate(owners), np.concatenate(places)
        farthest = np.argsort(-key, kind="stable")
        weight = np.array(sizes)[owner[farthest]]
        done = 0
        while excess > 0 and done < len(farthest):  # again if a writer was filling some victims
            freed = np.cumsum(weight[done:])
            enough = int(np.searchsorted(freed, excess)) + 1
            ahead = int(np.searchsorted(freed, excess + self._limit // BATCH, side="right"))
            victims = farthest[done : done + max(enough, ahead)]
            done += len(victims)
            for number in np.unique(owner[victims]).tolist():
                chunks = np.sort(place[victims[owner[victims] == number]])
                size = self._take_away(CacheFile(paths[number]), chunks)
                used, excess = used - size, excess - size
        return used

    def _take_away(self, file: CacheFile, chunks: np.ndarray) -> int:
        """Remove chunks from a file, except locked chunks; returns the bytes freed."""
        freed = 0
        for first, count in consecutive(chunks):
            try:
                with locked(file.path, first, count, 0.0):
                    file.take_away(first, count)
            except TimeoutError:
                if count > 1:
                    freed += sum(self._take_away(file, chunks[chunks == c]) for c in range(first, first + count))
                continue
            except OSError as error:
                if not cannot_punch(error):
                    raise
                return freed + count * file.layout.chunk_bytes + self._take_all(file)
            freed += count * file.layout.chunk_bytes
            self.requests.add("evict", count * file.layout.chunk_bytes)
        return freed

    def _take_all(self, file: CacheFile) -> int:
        """Free a whole object's blocks, as nothing less can be freed without holes; returns the bytes freed."""
        count = file.layout.chunks
        with suppress(TimeoutError), locked(file.path, 0, count, 0.0):
            left = file.used()
            with suppress(OSError):
                file.take_away(0, count)
            file.truncate()
            self.requests.add("evict", left)
            return left
        return 0

    def _file(self, ref: ObjectRef, *, make: bool = True) -> CacheFile | None:
        """The object's file. A missing file is created, or None without `make`; None if that fails."""
        name = f"{ref.digest}-{ref.chunk_bytes}-{ref.bytes}"
        with self._lock:
            file = self._files.pop(name, None)
            if file is not None:
                self._files[name] = file  # most recently used last
                return file
        try:
            layout = CacheLayout(bytes=ref.bytes, chunk_bytes=ref.chunk_bytes)
            file = self._open(f"{self._root}/{ref.digest[:2]}/{name}", layout, make)
        except OSError as error:
            self._warn(error)
            return None
        if file is None:
            return None
        with self._lock:
            self._files[name] = file
            while len(self._files) > self._max_open:
                del self._files[next(iter(self._files))]
        return file

    def _open(self, path: str, layout: CacheLayout, make: bool) -> CacheFile | None:
        with suppress(FileNotFoundError, DamagedFile):
            return CacheFile(path, layout)
        if not make:
            return None
        with self._accounting():
            with suppress(FileNotFoundError):
                try:
                    return CacheFile(path, layout)
                except DamagedFile:
                    os.unlink(path)  # half made by a killed process, or damaged
            create(path, layout)
            return CacheFile(path, layout)

    def _every_file(self) -> Iterator[CacheFile]:
        for folder in os.scandir(self._root):
            if folder.is_dir():
                for entry in os.scandir(folder.path):
                    with suppress(OSError):  # of one file, which is left out: damaged, or no file
                        yield CacheFile(entry.path)

    def _join(self) -> None:
        """Join the cache's users; a process without other users puts the cache in order."""
        os.makedirs(self._root, exist_ok=True)
        self._membership = os.open(self._usage, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        alone = try_lock(self._membership, _BYTE_USERS, 1)
        if alone:
            with self._accounting() as usage:
                session = (int.from_bytes(os.pread(self._membership, 8, SESSION), "little") + 1) % 2**64
                os.pwrite(self._membership, session.to_bytes(8, "little"), SESSION)
                usage[0] = sum(self._put_in_order(file) for file in self._every_file())
        try:
            wait_lock(self._membership, _BYTE_USERS, 1, self._locks.patience, shared=True)
        except TimeoutError as error:
            self._warn(error)
        stored = os.pread(self._membership, 8, SESSION)
        self._session = (int.from_bytes(stored, "little") & 0xFFFF) << NEXT_USE_BITS

    def _put_in_order(self, file: CacheFile) -> int:
        """Remove half-written chunks of killed processes; returns the bytes in use."""
        states = np.frombuffer(file.states(), np.uint8)
        present = int((states == PRESENT).sum()) * file.layout.chunk_bytes
        if not present:
            os.unlink(file.path)
        elif RESERVED in states or file.blocks() > file.layout.data + present:
            for first, count in consecutive(np.flatnonzero(states != PRESENT)):
                with suppress(OSError):
                    file.take_away(first, count)
        return present

    @contextmanager
    def _accounting(self) -> Iterator[list[int]]:
        """Hold the accounting lock; gives the bytes in use as a list, for changes in place. A cut count is renewed."""
        with self._locks.hold(self._usage, _BYTE_USAGE, 1) as descriptor:
            stored = os.pread(descriptor, 8, USED)
            before = int.from_bytes(stored, "little")
            usage = [before if len(stored) == 8 else sum(file.used() for file in self._every_file())]
            try:
                yield usage
            finally:
                if usage[0] != before:
                    os.pwrite(descriptor, max(0, usage[0]).to_bytes(8, "little"), USED)

    def _forget(self, file: CacheFile | None, error: OSError) -> None:
        self._warn(error)
        if file is not None and error.errno in (errno.ENOENT, errno.ESTALE):
            with self._lock:
                self._files.pop(os.path.basename(file.path), None)

    def _warn(self, error: OSError) -> None:
        self.requests.add("error")
        if not self._warned:
            self._warned = True
            logger.warning(
                "the node cache %s cannot be used as it should (%s); reads pass through to the store where "
                "it fails: slower, the same bytes. Free space there, or set another cache directory.",
                self._root,
                error.strerror or error,
            )
