"""Small segments and datasets for tests, and the expected content beside them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import create_or_open
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.handle import Segment, read_rows
from fmscale.store.segments.seal import SealInfo, segment_prefix
from fmscale.store.segments.tokens_writer import TokenSegmentWriter

TOKENIZER = b'{"type":"bytes"}'


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document to store."""

    tokens: np.ndarray
    id: bytes
    source: str
    start: int
    stop: int


def documents(lengths: Sequence[int], *, dtype: str = "uint16", seed: int = 0) -> list[Document]:
    """Documents of these lengths with random tokens and ids; two in three come from one file."""
    rng = np.random.default_rng(seed)
    high = np.iinfo(dtype).max
    return [
        Document(
            tokens=rng.integers(0, high, length, dtype=dtype, endpoint=True),
            id=rng.bytes(16),
            source="all.jsonl" if i % 3 else f"docs/{i}.md",
            start=10 * i,
            stop=10 * i + length,
        )
        for i, length in enumerate(lengths)
    ]


def write_segment(
    store: Backend,
    prefix: str,
    docs: Sequence[Document],
    *,
    split: str = "train",
    dtype: str = "uint16",
    shard_tokens: int = 2**25,
    scratch: Path | None = None,
) -> SealInfo:
    """Store the documents as a sealed token segment."""
    with tempfile.TemporaryDirectory() as folder:
        writer = TokenSegmentWriter(scratch or Path(folder), dtype=dtype, split=split, shard_tokens=shard_tokens)
        with writer:
            for doc in docs:
                writer.add(doc.tokens, doc.id, doc.source, doc.start, doc.stop)
            return writer.finish(store, prefix)


def write_commit(
    store: Backend,
    name: str,
    splits: dict[str, list[list[Document]]],
    *,
    job: str = "job",
    dtype: str = "uint16",
    tokenizer: bytes = TOKENIZER,
    shard_tokens: int = 2**25,
    bos: int | None = None,
    eos: int | None = 0,
) -> Commit:
    """Commit a dataset of token segments: for each split the documents of each work unit."""
    digest = metadata_digest(job.encode())
    segments: dict[str, list[tuple[int, SealInfo]]] = {}
    for split, units in splits.items():
        segments[split] = []
        for unit, docs in enumerate(units):
            prefix = segment_prefix(name, digest, unit, split)
            seal = write_segment(store, prefix, docs, split=split, dtype=dtype, shard_tokens=shard_tokens)
            segments[split].append((unit, seal))
    return create_or_open(store, name).append_commit(
        job=digest,
        segments=segments,
        tokenizer=store_tokenizer(store, tokenizer),
        dtype=dtype,
        bos=bos,
        eos=eos,
    )


def flip(store: Backend, key: str, offset: int) -> None:
    """Flip one bit of a stored object."""
    data = bytearray(store.get(key))
    data[offset] ^= 1
    store.put(key, bytes(data))


def truncate(store: Backend, key: str, size: int) -> None:
    """Keep only the first `size` bytes of a stored object."""
    store.put(key, store.get(key)[:size])


def read_documents(backend: Backend, segment: Segment, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive ends (count,) and ids (count, 2) of documents [first, first + count), uint64."""
    ends, ids = (read_rows(backend, segment, f"document_{name}", first, count) for name in ("ends", "ids"))
    return ends, ids
