"""Views: rows of a dataset for training, under a digest that pins every token and the order's version."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from fmscale.data.order.order import ORDER_VERSION
from fmscale.data.order.units import Units
from fmscale.data.views.mask import Mask, load_mask
from fmscale.data.views.mask_spans import KeptRanges
from fmscale.errors import DataError, FormatError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.digest import canonical_json, metadata_digest

FORMAT_VERSION = 1
"""Version of a new view's JSON; older versions can be read."""
UNIT_BYTES = 256 * 1024
"""Default for the least bytes of a unit: with 16 KiB chunks a unit fetches 1.06 times its bytes."""
WINDOW = 2048
"""Units of a shuffle window by default: entropy 0.993 of a full shuffle on data sorted by class."""
STREAM = "stream"
"""Packing: rows are slices of a commit's kept tokens, one after another; a tail shorter than a row is left out."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Rows of one split of one or more commits of a dataset."""

    dataset: str
    """Name of the dataset."""
    split: str
    """Split of the dataset."""
    commits: tuple[int, ...]
    """Numbers of the commits, in order."""
    manifests: tuple[str, ...]
    """Digest of each commit's manifest of the split, from which every byte is verified; "" without a manifest."""
    masks: tuple[str, ...]
    """Digests of masks, sorted; a document in any of them is left out."""
    sequence_length: int
    """T: tokens of a row as it is delivered."""
    packing: str
    """Way in which documents become rows: `stream`."""
    rows_per_unit: int
    """b: consecutive rows that are read together."""
    window: int
    """W: units of a shuffle window."""
    tokenizer: str | None
    """Digest of the tokenizer."""
    bos: int | None
    """Token before each document, if any."""
    eos: int | None
    """Token after each document, if any."""
    dtype: str
    """Type of a stored token, `uint16` or `uint32`."""
    tokens: tuple[int, ...]
    """Kept tokens of each commit."""
    order_version: int
    """Version of the order's construction."""

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of each commit."""
        return tuple(tokens // self.sequence_length for tokens in self.tokens)

    @cached_property
    def units(self) -> Units:
        """Units of the view. Raises DataError if the view has no row."""
        return Units(self.rows, self.rows_per_unit)

    @cached_property
    def digest(self) -> str:
        """Name of the view: digest of all fields, 32 hex digits."""
        return metadata_digest(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The view as JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: str | bytes | dict[str, Any]) -> "View":
        """The view from its JSON, as text or as values. Raises FormatError for an unknown version."""
        values = dict(value) if isinstance(value, dict) else json.loads(value)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION or values.get("order_version") != ORDER_VERSION:
            raise FormatError(
                "a view of another format or order",
                found=(version, values.get("order_version")),
                remedy=f"This fmscale knows format_version {FORMAT_VERSION}, order_version {ORDER_VERSION}.",
            )
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise FormatError(
                "a view lacks fields or has unknown ones",
                found=sorted(set(values) ^ names),
                remedy="It was written by another fmscale: upgrade here, or make the view anew.",
            )
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


def make_view(
    dataset: Dataset,
    *,
    sequence_length: int,
    split: str = "train",
    commits: Sequence[int] | None = None,
    masks: Sequence[str] = (),
    rows_per_unit: int | None = None,
    window: int = WINDOW,
) -> View:
    """The view of the dataset's live commits, or of `commits`, with `sequence_length` tokens a row.

    By default `rows_per_unit` is the least that reaches 256 KiB. Raises DataError if no commit has the split, if no
    commit's split reaches a row, or if the dataset holds records.
    """
    if sequence_length < 1 or window < 1 or (rows_per_unit is not None and rows_per_unit < 1):
        raise DataError(
            "sequence_length, rows_per_unit and window are at least 1",
            found=(sequence_length, rows_per_unit, window),
            remedy="Only rows_per_unit may be left out.",
        )
    commit_list = dataset.commits() if commits is None else [dataset.commit(n) for n in sorted(set(commits))]
    if not commit_list:
        raise DataError(f"Dataset {dataset.name} has no live commit", remedy="Ingest into it, or use another dataset.")
    first = commit_list[0]
    if first.kind != "tokens":
        raise DataError(
            f"Dataset {dataset.name} holds no tokens",
            found=first.kind,
            remedy="Name a dataset that `fmscale ingest` made of text.",
        )
    splits = sorted({name for commit in commit_list for name in commit.manifests})
    if split not in splits:
        raise DataError(f"Dataset {dataset.name} has no such split", found=split, remedy=f"It has {', '.join(splits)}.")
    digests = tuple(sorted(set(masks)))
    loaded = [load_mask(dataset.backend, dataset.name, digest) for digest in digests]
    tokens = tuple(
        kept_tokens(commit.totals[split].tokens, commit.number, split, loaded).tokens if split in commit.totals else 0
        for commit in commit_list
    )
    row_bytes = sequence_length * np.dtype(first.dtype).itemsize
    view = View(
        dataset=dataset.name,
        split=split,
        commits=tuple(commit.number for commit in commit_list),
        manifests=tuple(_manifest_digest(commit, split) for commit in commit_list),
        masks=digests,
        sequence_length=sequence_length,
        packing=STREAM,
        rows_per_unit=-(-UNIT_BYTES // row_bytes) if rows_per_unit is None else rows_per_unit,
        window=window,
        tokenizer=first.tokenizer,
        bos=first.bos,
        eos=first.eos,
        dtype=first.dtype,
        tokens=tokens,
        order_version=ORDER_VERSION,
    )
    if not sum(view.rows):
        raise DataError(
            f"The split {split} of dataset {dataset.name} is shorter than a row in every commit",
            found=f"{sum(tokens)} tokens",
            remedy=f"Use a sequence_length below {max(tokens) + 1}, or ingest more.",
        )
    return view


def view_commits(dataset: Dataset, view: View) -> list[Commit]:
    """Commits of the view. Raises DataError if a commit has another manifest than the view records."""
    commits = dataset.named(view.commits)
    for commit, digest in zip(commits, view.manifests, strict=True):
        stored = _manifest_digest(commit, view.split)
        if stored != digest:
            raise DataError(
                f"Commit {commit.number} of dataset {dataset.name} is not the one that the view was made of",
                found=stored,
                remedy=f"The view wants the manifest {digest}: open the store that it was made on.",
            )
    return commits


def _manifest_digest(commit: Commit, split: str) -> str:
    manifest = commit.body["manifests"].get(split)
    return str(manifest["digest"]) if manifest else ""


def kept_tokens(tokens: int, commit: int, split: str, masks: Sequence[Mask]) -> KeptRanges:
    """The kept tokens of a commit, without a read from the store."""
    starts, stops = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
    for mask in masks:
        if mask.split != split:
            raise DataError("a mask of another split", found=mask.split, remedy=f"This view is of {split}.")
        documents = mask.documents
        part = slice(*np.searchsorted(documents.commit, [commit, commit + 1]).tolist())
        starts.append(documents.position[part])
        stops.append(documents.position[part] + documents.stop[part] - documents.start[part])
    return KeptRanges(tokens, np.concatenate(starts), np.concatenate(stops))
