"""Reads every byte of a checkpoint and names damaged objects and chunks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fmscale.checkpoint.catalog import CheckpointEntry, load_manifest
from fmscale.checkpoint.format.manifest import CheckpointManifest, encode, merge
from fmscale.checkpoint.format.names import SUMS, run_log, seal_key
from fmscale.checkpoint.format.seal import Seal, StoredFile, decode_seal
from fmscale.checkpoint.read.agree import DAMAGE
from fmscale.checkpoint.read.reader import SPAN_BYTES, Reader
from fmscale.errors import CorruptData, FmscaleError
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.digest import CHUNK_BYTES, crc32c
from fmscale.store.keys import damaged


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

    Raises StoreError where the store fails, which proves no damage, and CorruptData if the log lacks an entry.
    """
    run_log(backend, found.run).check()
    try:
        manifest = load_manifest(backend, found)
    except DAMAGE as error:
        return [CheckpointProblem(key=found.body["manifest"]["key"], chunk=None, what=str(error))], True
    reader = Reader(backend, manifest)
    files = manifest.files
    problems = list(_seal_problems(backend, found, manifest))
    problems += [p for i, file in enumerate(files) for p in _file_problems(backend, file, reader, i, progress)]
    return problems, all(file.sums for file in files)


def _seal_problems(
    backend: Backend, found: CheckpointEntry, manifest: CheckpointManifest
) -> Iterator[CheckpointProblem]:
    """Differences between the ranks' seals and what rank 0 made of them. A seal may be lost or empty: it is not synced,
    and nothing but this check reads it after the commit.
    """
    seals: list[Seal] = []
    for rank in range(found.world_size):
        key = seal_key(found.folder, rank)
        if not (data := (find(backend, key) or b"").strip(b"\0")):
            continue
        try:
            seal = decode_seal(data, key)
            expected = (found.step, found.folder, found.world_size, rank)
            if (seal.step, seal.folder, seal.world_size, seal.rank) != expected:
                raise CorruptData(f"{key} is the seal of another rank or checkpoint", remedy=damaged(key))
            seals.append(seal)
        except DAMAGE as error:
            yield CheckpointProblem(key=key, chunk=None, what=str(error))
    if len(seals) < found.world_size:
        return
    totals = {"bytes": found.bytes, "referenced": found.referenced}
    for name, total in totals.items():
        if (sealed := sum(getattr(seal, name) for seal in seals)) != total:
            what = f"the log entry records {name} {total}, and the ranks' seals {sealed}"
            yield CheckpointProblem(key=found.folder, chunk=None, what=what)
    try:
        differs = encode(merge(seals)) != encode(manifest)
    except FmscaleError as error:
        yield CheckpointProblem(key=found.folder, chunk=None, what=f"the ranks' seals contradict each other: {error}")
        return
    if differs:
        what = "differs from the ranks' seals"
        yield CheckpointProblem(key=found.body["manifest"]["key"], chunk=None, what=what)


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
