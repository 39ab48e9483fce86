"""Rendered records as texts again, in runs that are trained or only read."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.segments.records import open_record_segment, read_records


def shown(backend: Backend, commit: Commit, count: int) -> list[dict[str, Any]]:
    """The first `count` records of a rendered commit: `source`, `answer`, and `texts`, each a list of runs with `text`,
    `trained` and `tokens`.
    """
    assert commit.tokenizer is not None, "a rendering has a tokenizer"
    tokenizer = from_json(load_tokenizer(backend, commit.tokenizer), f"tokenizer {commit.tokenizer}")
    made = []
    for record in _records(backend, commit, count):
        runs = np.array(record["trained"], dtype=np.int64)
        trained = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        texts, first = [], 0
        for piece in record["pieces"]:
            ids, mask = np.array(record["tokens"][first : first + piece]), trained[first : first + piece]
            edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), piece]
            spans = [(begin, end) for begin, end in pairwise(edges) if end > begin]
            texts.append(
                [
                    {"text": tokenizer.decode(ids[a:b].tolist()), "trained": bool(mask[a]), "tokens": b - a}
                    for a, b in spans
                ]
            )
            first += piece
        made.append({"source": record["source"], "answer": record["answer"], "texts": texts})
    return made


def _records(backend: Backend, commit: Commit, count: int) -> Iterator[dict[str, Any]]:
    for _, manifest in sorted(commit.manifests.items(), reverse=True):  # train before heldout
        for row in manifest.rows():
            if count <= 0:
                return
            segment = open_record_segment(backend, row.prefix, row.seal)
            found = read_records(backend, segment, 0, min(count, row.documents)).to_pylist()
            yield from found
            count -= len(found)
