"""Derives the column of sizes: each record's length under a spec, before training reads any record.

Units of the job are segments. A unit's outcome is a part of its commit's column, so that a job that was killed at any
point goes on when it runs again. The sizes are the same for any number of workers.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from fmscale.data.samples.protocol import Spec
from fmscale.data.samples.segment_sizes import require_columns, segment_sizes
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import import_spec, open_spec, size_text, spec_text
from fmscale.data.workers.messages import Message
from fmscale.data.workers.pool import Progress, UnitWork, most_workers, share_units
from fmscale.data.workers.serve import Run, serve
from fmscale.errors import DataError
from fmscale.store.datasets.columns import Column, column_key, open_column
from fmscale.store.datasets.columns_writer import Layout, finish_column, finished_parts, put_part
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.manifest import SegmentRow
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store

NAMES = 10_000
"""Most bad records that a result names."""


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Sizes of the records of a split under a spec."""

    new: bool
    """False if the columns were there already and nothing was done."""
    commits: tuple[int, ...]
    """Commits of the split."""
    folders: tuple[str, ...]
    """Folder of each commit's column."""
    resumed: int
    """Segments that an earlier run had finished."""
    records: int
    tokens: int
    """Sum of all sizes."""
    largest: int
    empty: int
    """Records of which an empty sample would be made; training leaves them out."""
    bad: int
    """Records of which no sample can be made, damaged ones too; their size is 0, and training leaves them out."""
    names: tuple[tuple[str, str], ...]
    """Id, or place, and reason of the first bad records."""
    histogram: tuple[int, ...]
    """Records by size: number i counts sizes from 2**i to 2**(i + 1) - 1."""


def derive_sizes(
    store: str,
    dataset: str,
    split: str,
    spec: Spec,
    *,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Derived:
    """Make the column of sizes of each live commit that has the split; the same call continues a killed job.

    `workers`: processes, by default one for each core; this process alone sees memory://. A record that is damaged, or
    for which the spec raises, has size 0. Raises DataError for a split without records, ConfigError for columns that no
    record has, RankError if a process dies, Conflict if other sizes are stored for the spec, and the errors of the
    store.
    """
    most = most_workers(workers, [store], "workers")
    reader = open_store(store, read_only=True)
    commits = [commit for commit in open_dataset(reader, dataset).commits() if split in commit.totals]
    if not commits or commits[-1].kind != "records":
        raise DataError(
            f"There are no records in the split {split} of dataset {dataset}",
            found=commits[-1].kind if commits else "no live commit has the split",
            remedy="`fmscale dataset list` shows the splits; `fmscale ingest --as records` makes records.",
        )
    require_writable(open_store(store))
    numbers = [commit.number for commit in commits]
    task: Message = {"store": store, "dataset": dataset, "split": split, "commits": numbers, "spec": spec_text(spec)}
    job = _Job(**task)
    require_columns(job.backend, job.manifests, job.spec, f"split {split} of dataset {dataset}")
    columns = [open_column(job.backend, key) for key in job.keys]
    units, resumed = [], 0
    for first, key, manifest, column in zip(job.firsts, job.keys, job.manifests, columns, strict=True):
        finished = finished_parts(job.backend, key) if column is None else range(manifest.segments)
        resumed += len(finished) if column is None else 0
        units += [first + segment for segment in range(manifest.segments) if segment not in finished]
    work = UnitWork(name="derive", module=__name__, task=task, units=units, describe=lambda unit: job.row(unit).prefix)
    total = sum(manifest.documents for manifest in job.manifests)
    done = total - sum(job.row(unit).documents for unit in units)
    share_units(work, most, job.run, total=total, done=done, progress=progress)
    open_dataset(job.backend, dataset).named(numbers)  # raises if a commit was retired meanwhile
    made = [
        column or finish_column(job.backend, key, job.layout, manifest)
        for column, key, manifest in zip(columns, job.keys, job.manifests, strict=True)
    ]
    return _summary(made, numbers, new=None in columns, resumed=resumed)


class _Job:
    """The job as the process that leads it and its workers see it. A unit is a segment, counted over all commits."""

    def __init__(self, store: str, dataset: str, split: str, commits: Sequence[int], spec: str) -> None:
        self.backend = open_store(store)
        import_spec(spec)
        self.spec = open_spec(self.backend, spec)
        self.layout = Layout(SIZE, size_text(self.spec), "uint32")
        self.manifests = [commit.manifests[split] for commit in open_dataset(self.backend, dataset).named(commits)]
        self.keys = [column_key(dataset, one.digest, self.layout.name, self.layout.maker) for one in self.manifests]
        self.firsts = list(accumulate((one.segments for one in self.manifests), initial=0))[:-1]

    def row(self, unit: int) -> SegmentRow:
        """The segment of a unit."""
        commit, segment = self._place(unit)
        return self.manifests[commit].row(segment)

    def run(self, unit: int, advance: Callable[[int], object]) -> str:
        """Do a unit: on return its part of the column is stored."""
        commit, segment = self._place(unit)
        sizes, note = segment_sizes(self.backend, self.row(unit), self.spec, advance)
        put_part(self.backend, self.keys[commit], segment, sizes, note)
        return ""

    def _place(self, unit: int) -> tuple[int, int]:
        commit = bisect_right(self.firsts, unit) - 1
        return commit, unit - self.firsts[commit]


def _summary(columns: Sequence[Column], commits: Sequence[int], *, new: bool, resumed: int) -> Derived:
    """The result, from the values and notes of the columns."""
    tokens, largest, bins = 0, 0, np.zeros(32, dtype=np.int64)
    counts: Counter[str] = Counter()
    names: list[tuple[str, str]] = []
    for column in columns:
        for segment in range(column.index.num_rows):
            sizes = column.part(segment)
            tokens += int(sizes.sum(dtype=np.uint64))
            largest = max(largest, int(sizes.max(initial=0)))
            bins += np.bincount(np.frexp(sizes[sizes > 0])[1] - 1, minlength=32)
        for text in column.notes().values():
            note = json.loads(text)
            counts.update(empty=note["empty"], bad=note["bad"])
            names += map(tuple, note["first"])
    return Derived(
        new=new,
        commits=tuple(commits),
        folders=tuple(column.key for column in columns),
        resumed=resumed,
        records=sum(column.records for column in columns),
        tokens=tokens,
        largest=largest,
        empty=counts["empty"],
        bad=counts["bad"],
        names=tuple(names[:NAMES]),
        histogram=tuple(np.trim_zeros(bins, "b").tolist()),
    )


@contextmanager
def _open_worker(task: Message) -> Iterator[Run]:
    yield _Job(**task).run


if __name__ == "__main__":
    serve(_open_worker)
