"""Datasets of records for tests, with their columns of sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.samples.protocol import BadRecord, Spec
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import size_text
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.columns import column_key
from fmscale.store.datasets.columns_writer import Layout, finish_column, put_part
from fmscale.store.datasets.dataset import Dataset, create_or_open
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.seal import segment_prefix
from tests.helpers.records import write_records


def record_dataset(
    store: Backend,
    name: str,
    segments: Sequence[pa.Table],
    *,
    first: int = 0,
    tokenizer: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Dataset:
    """A commit with a segment for each table; record i of segment s has the number first + s * 10^6 + i."""
    dataset = create_or_open(store, name)
    job = metadata_digest(f"{name}{len(dataset.commits())}".encode())
    seals = [
        (unit, write_records(store, segment_prefix(name, job, unit, "train"), table, first=first + unit * 10**6))
        for unit, table in enumerate(segments)
    ]
    dataset.append_commit(
        job=job, segments={"train": seals}, tokenizer=tokenizer, dtype="", kind="records", extra=extra
    )
    return dataset


def add_sizes(dataset: Dataset, spec: Spec, segments: Sequence[pa.Table]) -> None:
    """The column of sizes of the dataset's last commit, whose segments hold these tables."""
    commit = dataset.commits()[-1]
    manifest = commit.manifests["train"]
    key = column_key(dataset.name, manifest.digest, SIZE, size_text(spec))
    for unit, table in enumerate(segments):
        put_part(dataset.backend, key, unit, np.array([_size(spec, row) for row in table.to_pylist()], np.uint32))
    finish_column(dataset.backend, key, Layout(SIZE, size_text(spec), "uint32"), manifest)


def _size(spec: Spec, record: dict[str, Any]) -> int:
    try:
        return spec.size(record)
    except BadRecord:
        return 0
