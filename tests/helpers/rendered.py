"""Rendered datasets for tests: pairs and rankings of random tokens, as `fmscale dataset render` writes them."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.config.spec import RenderedSpec
from fmscale.data.samples.specs import make_spec
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset
from tests.helpers.record_datasets import add_sizes, record_dataset

Text = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt and of its answer, which is trained."""
SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.uint32())) for name in ("tokens", "pieces", "trained")),
        *((name, pa.string()) for name in ("answer", "source")),
    ]
)


def rendered(records: Sequence[Sequence[Text]]) -> pa.Table:
    """The rendered records of texts."""
    rows = []
    for number, texts in enumerate(records):
        marks = [mark for prompt, answer in texts for mark in [0] * len(prompt) + [1] * len(answer)]
        runs = [(mark, len(list(group))) for mark, group in groupby(marks)]
        rows.append(
            {
                "tokens": [token for prompt, answer in texts for token in (*prompt, *answer)],
                "pieces": [len(prompt) + len(answer) for prompt, answer in texts],
                "trained": [0] * (runs[0][0] == 1) + [length for _, length in runs],
                "answer": None,
                "source": f"{number:032x}",
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def random_rankings(count: int, seed: int, *, answers: int = 2, vocab: int = 250, longest: int = 20) -> pa.Table:
    """Rankings of random prompts and answers; pairs by default."""
    rng = np.random.default_rng(seed)

    def tokens(least: int) -> list[int]:
        found: list[int] = rng.integers(vocab, size=rng.integers(least, longest)).tolist()
        return found

    records = []
    for _ in range(count):
        prompt = tokens(2)
        records.append([(prompt, tokens(1)) for _ in range(answers)])
    return rendered(records)


def rendered_dataset(store: Backend, name: str, segments: Sequence[pa.Table], **options: Any) -> Dataset:
    """A commit with a segment for each table, and its column of sizes."""
    dataset = record_dataset(store, name, segments, **options)
    add_sizes(dataset, make_spec(RenderedSpec(), store, limit=2**20), segments)
    return dataset
