"""A small dataset of several commits, and the rows that its view must hold."""

from dataclasses import dataclass

import numpy as np

from fmscale.store.backends.protocol import Backend
from tests.helpers.segments import Document, documents, write_commit

T = 129
"""Tokens of a row in tests."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Name and documents of a stored dataset."""

    name: str
    commits: list[list[Document]]

    def rows(self, length: int = T) -> np.ndarray:
        """uint16 [N, length]: the rows of the view of all commits, by row id."""
        flat = [np.concatenate([doc.tokens for doc in docs]) for docs in self.commits]
        return np.concatenate([f[: len(f) // length * length].reshape(-1, length) for f in flat])


def store_corpus(store: Backend, name: str = "corpus", *, seed: int = 0, scale: int = 1) -> Corpus:
    """Two commits: 500 * scale documents in three segments of several shards, then 90 short documents."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(5.0, 0.8, 500 * scale).astype(int), 1)
    first = documents(lengths.tolist(), seed=seed)
    second = documents(range(1, 91), seed=seed + 1)
    third = len(first) // 3
    units = [first[:third], first[third : 2 * third], first[2 * third :]]
    write_commit(store, name, {"train": units}, job=f"{name}-1", shard_tokens=32768)
    write_commit(store, name, {"train": [second]}, job=f"{name}-2")
    return Corpus(name=name, commits=[first, second])
