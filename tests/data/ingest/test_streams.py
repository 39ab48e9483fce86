"""Compressed files: all that stands before damage is kept, and little input that inflates to much needs no memory."""

import gzip
import io
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from fmscale.data.ingest.formats import Bad, FilePart, Item, RawDocument, read
from fmscale.data.ingest.formats.streams import BUFFER_BYTES, take, uncompressed
from tests.data.ingest.corpora import lines

TEXTS = [f"document {i}: {random.Random(i).random()}" for i in range(2000)]
DATA = lines(TEXTS)


def blocks(data: bytes) -> bytes:
    """A frame with a checksum and blocks of 4000 bytes."""
    machine = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    parts = [
        machine.compress(data[begin : begin + 4000]) + machine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for begin in range(0, len(data), 4000)
    ]
    return b"".join(parts) + machine.flush()


Pack = Callable[[bytes], bytes]
PACKS = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": blocks}


def found(name: str, data: bytes) -> list[Item]:
    return list(read(io.BytesIO(data), FilePart(source=name, format="jsonl", field="text")))


def content(name: str, data: bytes) -> tuple[bytes, Exception | None]:
    return take(uncompressed(io.BytesIO(data), name), 1 << 40)


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("garbage", [b"garbage", b"g", b"\x1f\x8c" + b"x" * 300_000])
def test_garbage_behind_the_end_costs_nothing_and_is_counted(name: str, garbage: bytes) -> None:
    packed = PACKS[name](DATA)
    *documents, bad = found(name, packed + garbage)
    assert [item.text for item in documents if isinstance(item, RawDocument)] == TEXTS
    assert isinstance(bad, Bad)
    assert (bad.reason, "behind the last whole" in bad.where) == ("broken", True)
    text = name.replace("jsonl", "txt")
    items = list(read(io.BytesIO(packed + garbage), FilePart(source=text, format="text", field="text")))
    assert [type(item) for item in items] == [RawDocument, Bad], "the text is whole"


@pytest.mark.parametrize("name", PACKS)
def test_all_documents_before_damage_are_kept(name: str) -> None:
    packed, draw = PACKS[name](DATA), random.Random(name)
    for _ in range(20):
        place = draw.randrange(20, len(packed))
        changed = bytearray(packed)
        changed[place] ^= 1 << draw.randrange(8)
        for damaged in (packed[:place], bytes(changed)):
            *documents, bad = found(name, damaged)
            texts = [item.text for item in documents if isinstance(item, RawDocument)]
            assert isinstance(bad, Bad)
            # A cut loses the open block of Zstandard, about 80 documents.
            least = max(0, place * 2000 // len(packed) - 120)
            assert texts[:least] == TEXTS[:least]


@pytest.mark.parametrize("name", PACKS)
def test_members_and_files_without_content(name: str) -> None:
    pack = PACKS[name]
    assert content(name, pack(b"one") + pack(b"") + pack(DATA)) == (b"one" + DATA, None)
    for data in (b"", pack(b""), pack(b"") + pack(b"")):
        assert found(name, data) == [Bad("empty", "")]
    assert isinstance(content(name, b"neither")[1], zlib.error | zstandard.ZstdError)


def test_what_stands_between_frames() -> None:
    skipped = b"\x57\x2a\x4d\x18\x05\0\0\0" + b"12345"
    packed = blocks(DATA) + skipped + zstandard.compress(b"x")
    assert content("a.zst", packed) == (DATA + b"x", None)
    assert isinstance(content("a.zst", blocks(DATA) + skipped[:-1])[1], EOFError)
    assert content("a.gz", gzip.compress(DATA) + bytes(300_000) + gzip.compress(b"x")) == (DATA + b"x", None)


@pytest.mark.parametrize("name", PACKS)
def test_little_input_that_inflates_to_much_comes_in_small_steps(name: str) -> None:
    packed = zstandard.compress(bytes(50_000_000)) if name.endswith("zst") else gzip.compress(bytes(50_000_000))
    stream = uncompressed(io.BytesIO(packed), name)
    sizes = [len(chunk) for chunk in stream.raw._chunks]  # type: ignore[attr-defined]
    assert sum(sizes) == 50_000_000
    assert max(sizes) <= BUFFER_BYTES
