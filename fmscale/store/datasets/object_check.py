"""Checks one stored object whole: its size, its digest and every chunk, reading each byte once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import DataDigest, crc32c

PART_BYTES = 2**22
"""Bytes in one read."""

Advance = Callable[[int], None]
"""Takes the number of bytes checked since its last call; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class ObjectProblem:
    """Damage of one object, or of one of its chunks, against what the commit recorded."""

    commit: int
    """Number of the commit that references it."""
    key: str
    """The object."""
    chunk: int | None = None
    """Index of the chunk (or record batch) in it, or None if it is about the object as a whole."""
    what: str
    """The problem: `missing`, `truncated: ...` or `damaged: ...`."""


Chunk = tuple[int, int, int, int]
"""(number, offset, length, crc32c)"""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An object as a commit, manifest or seal recorded it."""

    key: str
    """Key on the store."""
    bytes: int
    """Its size."""
    digest: str
    """Its digest."""
    hashed: Callable[[], Any] = DataDigest
    """Kind of the digest."""
    chunks: Sequence[Chunk] = ()
    """Its chunks by offset, where their checksums are known."""


def check_object(backend: Backend, expected: Expected, commit: int, advance: Advance) -> list[ObjectProblem]:
    """Problems of an object; none if it is as recorded. Raises the store's error if it does not answer."""

    def problem(what: str, chunk: int | None = None) -> ObjectProblem:
        return ObjectProblem(commit=commit, key=expected.key, chunk=chunk, what=what)

    try:
        size = backend.head(expected.key).bytes
    except ObjectNotFound:
        return [problem("missing")]
    chunks = _Chunks(expected.chunks)
    digest = expected.hashed()
    try:
        for part in _parts(backend, expected.key, min(size, expected.bytes)):
            digest.update(part)
            chunks.feed(part)
            advance(len(part))
    except (CorruptData, ObjectNotFound) as error:
        return [problem(f"damaged: changed while it was read ({error.cause})")]
    found = [problem("damaged: bytes do not match their crc32c", chunk) for chunk in chunks.bad]
    if size < expected.bytes:
        found.append(problem(f"truncated: {size} of {expected.bytes} bytes", chunks.next))
    elif size > expected.bytes:
        found.append(problem(f"damaged: {size} bytes instead of {expected.bytes}"))
    elif not found and digest.hexdigest()[:32] != expected.digest:
        where = "bytes outside its chunks do" if chunks.any else "its bytes do"
        found.append(problem(f"damaged: {where} not match its digest"))
    return found


def _parts(backend: Backend, key: str, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(size, PART_BYTES)))
    for start in range(0, size, PART_BYTES):
        part = buffer[: min(PART_BYTES, size - start)]
        backend.read_into(key, start, part)
        yield part


class _Chunks:
    """Checksums of chunks over bytes that come in parts, cut anywhere."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.bad: list[int] = []
        self._chunks = iter(chunks)
        self._current: Any = next(self._chunks, None)
        self.any = self._current is not None
        self._position = 0
        self._value = 0

    @property
    def next(self) -> int | None:
        """The first chunk that was not seen to its end."""
        return None if self._current is None else int(self._current[0])

    def feed(self, part: memoryview) -> None:
        """Take the next bytes of the object."""
        end = self._position + len(part)
        while self._current is not None and self._current[1] < end:
            number, offset, length, expected = self._current
            low, high = max(offset, self._position), min(offset + length, end)
            self._value = crc32c(part[low - self._position : high - self._position], self._value)
            if high < offset + length:
                break
            if self._value != expected:
                self.bad.append(number)
            self._current, self._value = next(self._chunks, None), 0
        self._position = end
