"""Derived columns of values that a model gives the texts of rendered records: log-probs of a reference, scores.

A unit of the job is a segment, whose outcome is a part of its commit's column: a job that was killed at any point goes
on when it runs again, and nothing is visible before the last part.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fmscale.data.samples.protocol import NO_SAMPLE, BadRecord, Draw, Record, Sample
from fmscale.data.samples.rendered import RenderedSamples
from fmscale.data.samples.segment_sizes import DAMAGE, require_columns, tables
from fmscale.errors import ConfigError, DataError
from fmscale.infer.score import Values, document_values
from fmscale.models import Decoder
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.columns_writer import Layout, finish_column, finished_parts, put_part
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.manifest import SegmentRow
from fmscale.store.segments.records import open_record_segment

SPEC = RenderedSamples(too_long="refuse", max_tokens=None)


@dataclass(frozen=True, kw_only=True)
class ValueColumns:
    """Outcome of a job."""

    new: bool
    """False if the columns were there already and nothing was done."""
    commits: tuple[int, ...]
    """Commits of the split."""
    folders: tuple[str, ...]
    """Folder of each commit's column."""
    resumed: int
    """Segments that an earlier run had finished."""
    records: int
    documents: int
    """Values of a record, one for each of its texts."""
    bad: int
    """Records that cannot be read; their values are NaN, and training leaves them out."""


def derive_values(
    backend: Backend,
    dataset: str,
    split: str,
    column: str,
    maker: str,
    model: Decoder,
    values: Values,
    *,
    tokenizer: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ValueColumns:
    """Make the column of each live commit that has the split; the same call continues a killed job. Values are fp32
    [texts of a record].

    `maker` names all that the values depend on (`values_maker`); `tokenizer` is the digest of the model's. Raises
    DataError for a split without rendered records or with records of different numbers of texts, ConfigError for
    another tokenizer, Conflict, and the errors of the store.
    """
    commits = rendered_commits(backend, dataset, split, tokenizer)
    texts = _texts(backend, commits, split, dataset)
    layout = Layout(column, maker, "float32", (texts,))
    keys = [column_key(dataset, commit.manifests[split].digest, column, maker) for commit in commits]
    total = sum(commit.manifests[split].documents for commit in commits)
    done = resumed = bad = 0
    new = False
    columns = []
    for commit, key in zip(commits, keys, strict=True):
        manifest, found = commit.manifests[split], open_column(backend, key)
        finished = range(manifest.segments) if found else finished_parts(backend, key)
        resumed += 0 if found else len(finished)
        for number, row in enumerate(manifest.rows()):
            if number not in finished:
                out = np.full((row.documents, texts), np.nan, dtype=np.float32)
                for first, samples in read_samples(backend, row):
                    _require_texts(samples, texts, dataset)
                    for at, found_values in enumerate(document_values(model, samples, values, threads=threads), first):
                        out[at] = found_values if len(found_values) else np.nan
                put_part(backend, key, number, out, _note(out))
            done += row.documents
            progress(done, total)
        new = new or found is None
        columns.append(found or finish_column(backend, key, layout, manifest))
    open_dataset(backend, dataset).named([commit.number for commit in commits])  # raises if one was retired meanwhile
    bad = sum(json.loads(note)["bad"] for each in columns for note in each.notes().values())
    return ValueColumns(
        new=new,
        commits=tuple(commit.number for commit in commits),
        folders=tuple(keys),
        resumed=resumed,
        records=total,
        documents=texts,
        bad=bad,
    )


def rendered_commits(backend: Backend, dataset: str, split: str, tokenizer: str | None) -> list[Commit]:
    """The live commits of a rendered dataset with the split. Raises DataError without one, ConfigError for records with
    other columns, or another tokenizer.
    """
    commits = [commit for commit in open_dataset(backend, dataset).commits() if split in commit.totals]
    if not commits or commits[-1].kind != "records":
        raise DataError(
            f"There are no rendered records in the split {split} of dataset {dataset}",
            found=commits[-1].kind if commits else "no live commit has the split",
            remedy="`fmscale dataset list` shows the splits; `fmscale dataset render` makes a rendered dataset.",
        )
    for commit in commits:
        theirs = commit.tokenizer
        if theirs and tokenizer and theirs != tokenizer:
            raise ConfigError(
                f"dataset {dataset} is rendered with another tokenizer than the model's",
                found=f"{theirs}, the model has {tokenizer}",
                remedy="Render the messages with this model: `fmscale dataset render --with RUN --to NAME`.",
            )
    manifests = [commit.manifests[split] for commit in commits]
    require_columns(backend, manifests, SPEC, f"split {split} of dataset {dataset}")
    return commits


def read_samples(backend: Backend, row: SegmentRow) -> Iterator[tuple[int, list[Sample]]]:
    """(first record, samples) of a segment in order; a record that cannot be read has no content."""
    try:
        segment = open_record_segment(backend, row.prefix, row.seal)
    except DAMAGE:
        yield 0, [NO_SAMPLE] * row.documents
        return
    for first, count, table in tables(backend, segment):
        if isinstance(table, Exception):
            yield first, [NO_SAMPLE] * count
        else:
            yield first, [_sample(record) for record in table.select(list(SPEC.columns)).to_pylist()]


def _sample(record: Record) -> Sample:
    try:
        return SPEC.make(SPEC.decode(record), Draw(0, 0), 2**31)
    except (BadRecord, TypeError, ValueError, IndexError):
        return NO_SAMPLE


def _texts(backend: Backend, commits: list[Commit], split: str, dataset: str) -> int:
    """Number of texts of the first record that can be read."""
    for commit in commits:
        for row in commit.manifests[split].rows():
            for _, samples in read_samples(backend, row):
                for sample in samples:
                    if sample.pieces:
                        return len(sample.pieces)
    raise DataError(f"No record of dataset {dataset} can be read", found=split, remedy="Run `fmscale dataset verify`.")


def _require_texts(samples: list[Sample], texts: int, dataset: str) -> None:
    other = next((len(sample.pieces) for sample in samples if len(sample.pieces) not in (0, texts)), None)
    if other is not None:
        raise DataError(
            f"the records of dataset {dataset} have different numbers of texts, and a column has one shape",
            found=f"{other} and {texts}",
            remedy="Ingest rankings of each length into a dataset of their own.",
        )


def _note(values: np.ndarray) -> str:
    bad = int(np.isnan(values).any(1).sum())
    return json.dumps({"bad": bad}) if bad else ""
