"""Checks a whole stored object: its size, its digest and every chunk, with one read of each byte."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import DataDigest, crc32c

if TYPE_CHECKING:
    import hashlib

PART_BYTES = 2**22
"""Bytes in one read."""

Advance = Callable[[int], None]
"""Takes the number of bytes checked since its last call; several threads call it."""


@dataclass(frozen=True, kw_only=True)
class ObjectProblem:
    """Damage of one object, or of one of its chunks, against the commit's record."""

    commit: int
    """Number of the commit that references the object."""
    key: str
    chunk: int | None = None
    """Index of the damaged chunk (or record batch) in the object, or None for the object as a whole."""
    what: str
    """The problem: `missing`, `truncated: ...` or `damaged: ...`."""


Chunk = tuple[int, int, int, int]
"""(number, offset, length, crc32c)"""


def chunks_of(sums: Iterable[int], size: int, total: int) -> list[Chunk]:
    """Chunks of `size` bytes back to back, of which the last ends with the object of `total` bytes."""
    return [(i, i * size, min(size, total - i * size), value) for i, value in enumerate(sums)]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An object as a commit, manifest or seal recorded it."""

    key: str
    bytes: int
    digest: str
    hashed: "Callable[[], DataDigest | hashlib._Hash]" = DataDigest
    """Kind of the digest."""
    chunks: Sequence[Chunk] = ()
    """Its chunks by offset, where their checksums are known."""


def check_object(backend: Backend, expected: Expected, commit: int, advance: Advance) -> list[ObjectProblem]:
    """Problems of an object; empty if it matches its record. Raises the store's error if it does not answer."""

    def problem(what: str, chunk: int | None = None) -> ObjectProblem:
        return ObjectProblem(commit=commit, key=expected.key, chunk=chunk, what=what)

    try:
        size = backend.head(expected.key).bytes
    except ObjectNotFound:
        return [problem("missing")]
    digest = expected.hashed()

    def parts() -> Iterator[memoryview]:
        end = min(size, expected.bytes)
        buffer = memoryview(bytearray(min(end, PART_BYTES)))
        for start in range(0, end, PART_BYTES):
            part = buffer[: end - start]
            backend.read_into(expected.key, start, part)
            digest.update(part)
            advance(len(part))
            yield part

    try:
        bad, cut = _bad_chunks(parts(), expected.chunks)
    except (CorruptData, ObjectNotFound) as error:
        return [problem(f"damaged: changed while it was read ({error.cause})")]
    problems = [problem("damaged: bytes do not match their crc32c", chunk) for chunk in bad]
    if size < expected.bytes:
        problems.append(problem(f"truncated: {size} of {expected.bytes} bytes", cut))
    elif size > expected.bytes:
        problems.append(problem(f"damaged: {size} bytes instead of {expected.bytes}"))
    elif not problems and digest.hexdigest()[:32] != expected.digest:
        where = "bytes outside its chunks do" if expected.chunks else "its bytes do"
        problems.append(problem(f"damaged: {where} not match its digest"))
    return problems


def _bad_chunks(parts: Iterator[memoryview], chunks: Iterable[Chunk]) -> tuple[list[int], int | None]:
    """Chunks that do not match their crc32c, and the first incomplete chunk or None. Reads all `parts` of the
    object's bytes.
    """
    bad: list[int] = []
    part, at = memoryview(b""), 0
    for number, offset, length, expected in chunks:
        value = 0
        while at < offset + length:
            part = part or next(parts, part)
            if not part:
                return bad, number
            stop = (offset if at < offset else offset + length) - at
            piece, part = part[:stop], part[stop:]
            value = crc32c(piece, value) if at >= offset else 0
            at += len(piece)
        if value != expected:
            bad.append(number)
    for _ in parts:
        pass
    return bad, None
