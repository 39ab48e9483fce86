"""Examples for prompts. Their choice is a function of the seed and a number, never of what was evaluated before."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmscale.data.views.mask import own_masked
from fmscale.errors import ConfigError, DataError
from fmscale.runtime.draw import draw
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.segments.records import open_record_segment, read_records


def drawn(pool: int, count: int, seed: int, number: int, without: int | None = None) -> list[int]:
    """`count` different numbers below `pool`, never `without`: those of document `number` under a seed.

    Raises ConfigError for a pool that is too small.
    """
    left = pool - (without is not None)
    if count > left:
        raise ConfigError(
            "There are too few documents for so many examples", found=count, remedy=f"Take {left} or fewer."
        )
    points = draw(seed, "examples", number, n=max(1, count))
    moved: dict[int, int] = {}
    chosen = []
    for i in range(count):  # the first steps of a Fisher-Yates shuffle
        j = i + int(points[i] * (left - i))
        chosen.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return [i + (without is not None and i >= without) for i in chosen]


def of_dataset(backend: Backend, name: str, split: str, count: int, seed: int) -> list[Mapping[str, Any]]:
    """`count` records of a split, each drawn by (seed, its number), without those that the dataset's masks leave out.

    Raises DataError for a dataset of tokens, or with too few records.
    """
    dataset = open_dataset(backend, name)
    commits = [commit for commit in dataset.commits() if split in commit.manifests]
    if not commits or commits[0].kind != "records":
        raise DataError(
            f"Dataset {name} has no records in the split {split}",
            found=commits[0].kind if commits else "no commit",
            remedy="Examples come from records: `fmscale ingest --as records`.",
        )
    masked = own_masked(dataset, split)
    sizes = [commit.totals[split].documents for commit in commits]
    left = sum(sizes) - sum(map(len, masked.values()))
    if count > left:
        raise DataError(f"Dataset {name} has too few records for so many examples", found=count, remedy=f"Take {left}.")
    starts = np.cumsum([0, *sizes])
    gone = [starts[i] + masked[commit.number] for i, commit in enumerate(commits) if commit.number in masked]
    taken = {int(row) for rows in gone for row in rows}
    found: list[Mapping[str, Any]] = []
    for i in range(count):
        row = int(draw(seed, "examples", i, n=1)[0] * starts[-1])
        while row in taken:
            row = (row + 1) % int(starts[-1])
        taken.add(row)
        place = int(np.searchsorted(starts, row, side="right")) - 1
        manifest = commits[place].manifests[split]
        index, offset = manifest.place(row - int(starts[place]), records=True)
        segment = open_record_segment(backend, *manifest.segment(index))
        found += read_records(backend, segment, offset, 1).to_pylist()
    return found
