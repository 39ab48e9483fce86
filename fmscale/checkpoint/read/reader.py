"""Reads ranges of logical tensors from a checkpoint's files, and checks every chunk that it touches."""

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.checkpoint.format.names import SUMS
from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import CHUNK_BYTES, verify_chunks
from fmscale.store.segments.handle import ObjectRef
from fmscale.store.segments.seal import verified
from fmscale.store.tiers.tier import Tiers

SPAN_BYTES = 8 << 20
"""Bytes of one read; several reads run at a time."""
LOCAL_THREADS, REMOTE_THREADS = 4, 16
"""Reads under way: enough to keep a disk busy, or an object store whose answers take 20 ms."""

Put = Callable[[int, memoryview], None]
"""Takes bytes of a request: (first byte, data). The data is valid during the call only."""


@dataclass(frozen=True, kw_only=True)
class ByteRequest:
    """A request for bytes of a file."""

    file: int
    """Number of the file in the manifest."""
    offset: int
    """First byte in the file."""
    bytes: int
    put: Put
    at: int
    """First byte in the memory that `put` fills."""


class Reader:
    """Checked reads from one checkpoint; safe across threads. Tiers are asked first, for files with checksums."""

    def __init__(self, backend: Backend, manifest: CheckpointManifest, tiers: Tiers | None = None) -> None:
        self.manifest = manifest
        self.bytes_read = 0
        self.bytes_needed = 0
        self.checked: dict[int, np.ndarray] = {}
        """For each file read so far, a bool a chunk: True once the checksum of the store's copy matched."""
        self._backend = backend
        self._tiers = tiers or Tiers()
        self._sums: dict[int, np.ndarray | None] = {}
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def requests(self, tensor: int, start: int, count: int, put: Put) -> Iterator[ByteRequest]:
        """Requests for elements [start, start + count) of a tensor."""
        size = self.manifest.tensors[tensor].item_bytes
        for file, offset, first, held in self.manifest.segments(tensor, start, count):
            yield ByteRequest(file=file, offset=offset, bytes=held * size, put=put, at=(first - start) * size)

    def read(self, requests: Sequence[ByteRequest], progress: Callable[[int], None] = lambda _: None) -> None:
        """Read all requests in the order of the files, each chunk once. Several threads call `put`, never twice for the
        same bytes.

        Raises CorruptData, ObjectNotFound or another StoreError, when some bytes may already be put.
        """
        spans = [span for file, parts in by_file(requests).items() for span in self._spans(file, parts)]
        self.bytes_needed += sum(request.bytes for request in requests)

        def read_span(span: tuple[int, int, int, list[ByteRequest]]) -> None:
            self._read_span(*span)
            progress(span[2] - span[1])

        remote = bool(spans) and self._backend.local_path(self.manifest.files[spans[0][0]].key) is None
        remote = remote or bool(self._tiers)  # other nodes answer
        with ThreadPoolExecutor(REMOTE_THREADS if remote else LOCAL_THREADS) as pool:
            for _ in pool.map(read_span, spans):  # an error cancels spans that have not begun
                pass

    def _spans(self, file: int, parts: list[ByteRequest]) -> Iterator[tuple[int, int, int, list[ByteRequest]]]:
        """Runs of whole chunks in a window of SPAN_BYTES: (file, begin, end, requests for its bytes). Requests may
        overlap: they are cut at the windows, so that no chunk is in two runs.
        """
        size = self.manifest.files[file].bytes
        held: list[ByteRequest] = []
        begin = end = 0
        pieces = [piece for part in parts for piece in _windows(part)]
        for part in sorted(pieces, key=lambda piece: piece.offset):
            low = part.offset // CHUNK_BYTES * CHUNK_BYTES
            if held and (low > end or low // SPAN_BYTES > begin // SPAN_BYTES):
                yield file, begin, end, held
                held = []
            if not held:
                begin = end = low
            held.append(part)
            end = max(end, min(size, -(-(part.offset + part.bytes) // CHUNK_BYTES) * CHUNK_BYTES))
        if held:
            yield file, begin, end, held

    def _read_span(self, file: int, begin: int, end: int, parts: list[ByteRequest]) -> None:
        buffer = self._buffer()[: end - begin]
        stored = self.manifest.files[file]
        first, chunks = begin // CHUNK_BYTES, -(-(end - begin) // CHUNK_BYTES)
        ref = self._ref(file) if self._tiers else None
        runs = self._tiers.read(ref, first, chunks, buffer) if ref else [(first, chunks)]
        for low, count in runs:
            run = buffer[low * CHUNK_BYTES - begin : (low + count) * CHUNK_BYTES - begin]
            self._backend.read_into(stored.key, low * CHUNK_BYTES, run)
        sums = self.sums(file)
        if sums is not None:
            bad = verify_chunks(buffer, sums[first : -(-end // CHUNK_BYTES)])
            if bad >= 0:
                raise CorruptData(
                    "bytes of a checkpoint do not have the checksum that was recorded",
                    found=f"{stored.key}, chunk {first + bad} (byte {(first + bad) * CHUNK_BYTES})",
                    remedy="Use another checkpoint; `fmscale checkpoint verify` names all that is damaged.",
                )
        with self._lock:
            self.bytes_read += end - begin
            if sums is not None:
                seen = self.checked.setdefault(file, np.zeros(len(sums), dtype=bool))
                for low, count in runs:
                    seen[low : low + count] = True
        for part in parts:
            part.put(part.at, buffer[part.offset - begin : part.offset - begin + part.bytes])

    def _ref(self, file: int) -> ObjectRef | None:
        """The file as chunks that tiers can serve; None for a file without checksums. Raises as `sums`."""
        stored, sums = self.manifest.files[file], self.sums(file)
        if sums is None:
            return None
        return ObjectRef(key=stored.key, bytes=stored.bytes, chunk_bytes=CHUNK_BYTES, crc32c=sums, digest=stored.sums)

    def sums(self, file: int) -> np.ndarray | None:
        """Checksums of a file's chunks, or None for a file without checksums. Raises CorruptData, ObjectNotFound."""
        if file in self._sums:
            return self._sums[file]
        stored, sums = self.manifest.files[file], None
        if stored.sums:
            data = self._backend.get(stored.key + SUMS)
            where = f"the checksums of a checkpoint's file, {stored.key + SUMS}"
            sums = np.frombuffer(verified(data, stored.sums, where, "Use another checkpoint."), dtype="<u4")
        self._sums[file] = sums
        return sums

    def _buffer(self) -> memoryview:
        """This thread's buffer, at a page."""
        if not hasattr(self._buffers, "map"):
            self._buffers.map = mmap.mmap(-1, SPAN_BYTES + 2 * CHUNK_BYTES)
        return memoryview(self._buffers.map)


def _windows(request: ByteRequest) -> Iterator[ByteRequest]:
    """The parts of a request in the windows of SPAN_BYTES of its file."""
    at, stop = request.offset, request.offset + request.bytes
    while at < stop:
        taken = min(stop, (at // SPAN_BYTES + 1) * SPAN_BYTES) - at
        yield replace(request, offset=at, bytes=taken, at=request.at + at - request.offset)
        at += taken


def by_file(requests: Sequence[ByteRequest]) -> dict[int, list[ByteRequest]]:
    """Requests of each file, by offset."""
    ordered = sorted(requests, key=lambda request: (request.file, request.offset))
    return {file: list(parts) for file, parts in groupby(ordered, key=lambda request: request.file)}
