"""Reads every byte of a checkpoint and names damaged objects and chunks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fmscale.checkpoint.catalog import CheckpointEntry, load_manifest
from fmscale.checkpoint.format.names import SUMS
from fmscale.checkpoint.format.seal import StoredFile
from fmscale.checkpoint.read.agree import DAMAGE
from fmscale.checkpoint.read.reader import SPAN_BYTES, Reader
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import CHUNK_BYTES, crc32c


@dataclass(frozen=True, kw_only=True)
class CheckpointProblem:
    """An object or chunk that differs from its record."""

    key: str
    chunk: int | None
    """Number of the 64 KiB chunk; None for a problem of the whole object."""
    what: str


def verify(
    backend: Backend, found: CheckpointEntry, progress: Callable[[int], None] = lambda _: None
) -> tuple[list[CheckpointProblem], bool]:
    """Return (problems, checkable); `checkable` is False if a file was written without checksums.

    Raises StoreError where the store fails; such an error proves no damage.
    """
    try:
        manifest = load_manifest(backend, found)
    except DAMAGE as error:
        return [CheckpointProblem(key=found.body["manifest"]["key"], chunk=None, what=str(error))], True
    reader = Reader(backend, manifest)
    files = manifest.files
    problems = [p for i, file in enumerate(files) for p in _file_problems(backend, file, reader, i, progress)]
    return problems, all(file.sums for file in files)


def size_of(backend: Backend, found: CheckpointEntry) -> int:
    """Bytes that `verify` reads; 0 for a damaged manifest."""
    try:
        return sum(file.bytes for file in load_manifest(backend, found).files)
    except DAMAGE:
        return 0


def _file_problems(
    backend: Backend, file: StoredFile, reader: Reader, number: int, progress: Callable[[int], None]
) -> Iterator[CheckpointProblem]:
    key = file.key + SUMS
    try:
        sums = reader.sums(number)
        key = file.key
        size = backend.head(key).bytes
    except DAMAGE as error:
        yield CheckpointProblem(key=key, chunk=None, what=error.cause)
        return
    if size != file.bytes:
        yield CheckpointProblem(key=key, chunk=None, what=f"has {size} bytes instead of {file.bytes}")
    buffer = memoryview(bytearray(SPAN_BYTES))
    end = min(size, file.bytes)
    for start in range(0, end, SPAN_BYTES):
        block = buffer[: min(SPAN_BYTES, end - start)]
        backend.read_into(key, start, block)
        progress(block.nbytes)
        if sums is None:
            continue
        for at in range(start, start + block.nbytes, CHUNK_BYTES):
            chunk, part = at // CHUNK_BYTES, block[at - start : at - start + CHUNK_BYTES]
            # A chunk that the file's end cuts off is not reported again.
            whole = at + part.nbytes == file.bytes or part.nbytes == CHUNK_BYTES
            if whole and crc32c(part) != int(sums[chunk]):
                yield CheckpointProblem(key=key, chunk=chunk, what="checksum does not match")
