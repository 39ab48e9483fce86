"""Views: the rows that training reads of a dataset, under a digest that pins every byte and the order's version.

A view's kind says what a row is: so many tokens of a running text (`token_view.py`), or a record (`record_view.py`).
Order, plan, bans and mixtures know the part that all kinds share, which is part.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fmscale.data.order.order import ORDER_VERSION
from fmscale.data.order.units import Units
from fmscale.data.views.mask import Mask, load_mask
from fmscale.data.views.mask_spans import KeptRanges
from fmscale.errors import DataError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.digest import canonical_json, metadata_digest

FORMAT_VERSION = 2
"""Version of a view's JSON; every version up to it is read, and rows of tokens without a spec are written as 1."""
UNIT_BYTES = 256 * 1024
"""Default for the least bytes of a unit: with 16 KiB chunks a unit fetches 1.06 times its bytes."""
WINDOW = 2048
"""Units of a shuffle window by default: entropy 0.993 of a full shuffle on data sorted by class."""


@dataclass(frozen=True, kw_only=True)
class View(ABC):
    """Rows of one split of one or more commits of a dataset."""

    kind: ClassVar[str]
    """`tokens` or `records`, as the dataset's."""
    dataset: str
    """Name of the dataset."""
    split: str
    commits: tuple[int, ...]
    """Numbers of the commits, in order."""
    manifests: tuple[str, ...]
    """Digest of each commit's manifest of the split, from which every byte is verified; "" without a manifest."""
    masks: tuple[str, ...]
    """Digests of masks, sorted; a document in any of them is left out."""
    rows_per_unit: int
    """b: consecutive rows that are read together."""
    window: int
    """W: units of a shuffle window."""
    order_version: int
    """Version of the order's construction."""
    spec: str = ""
    """Canonical JSON of the spec that makes samples of rows; "" where rows are delivered as they are stored."""

    @property
    @abstractmethod
    def counts(self) -> tuple[int, ...]:
        """Kept tokens, or records, of each commit."""

    @property
    @abstractmethod
    def row_length(self) -> int:
        """Positions of a row among the kept tokens, or records, of its commit."""

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of each commit."""
        return tuple(count // self.row_length for count in self.counts)

    @property
    def kept(self) -> int:
        """Kept tokens, or records, of all commits."""
        return sum(self.counts)

    @property
    def left_out(self) -> int:
        """Kept tokens that are in no row: the end of each commit that is shorter than a row."""
        return sum(count % self.row_length for count in self.counts)

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
        values = asdict(self)
        spec = values.pop("spec")
        if self.kind == "tokens" and not spec:
            return {"format_version": 1, **values}
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            **values,
            "spec": json.loads(spec) if spec else None,
        }


def common_part(
    dataset: Dataset,
    kind: str,
    *,
    split: str,
    commits: Sequence[int] | None,
    masks: Sequence[str],
    window: int,
    spec: str,
    live: Sequence[Commit] | None = None,
) -> tuple[list[Commit], tuple[int, ...], dict[str, Any]]:
    """The commits of a new view, live or chosen, the tokens or records that masks leave of each, and the fields that do
    not depend on the kind. `live` are the dataset's commits, if they are known. The masks are those given and the
    dataset's own; with chosen `commits`, the own masks up to the last of these.

    Raises DataError unless the dataset has commits of this kind, and one of them the split.
    """
    if commits is not None:
        chosen = [dataset.commit(number) for number in sorted(set(commits))]
    else:
        chosen = list(dataset.commits() if live is None else live)
    if not chosen:
        raise DataError(f"Dataset {dataset.name} has no live commit", remedy="Ingest into it, or use another dataset.")
    if chosen[0].kind != kind:
        raise DataError(
            f"Dataset {dataset.name} holds no {kind}",
            found=chosen[0].kind,
            remedy="Name a dataset that `fmscale ingest` made of text."
            if kind == "tokens"
            else "Name a dataset that `fmscale ingest --as records` made.",
        )
    splits = sorted({name for commit in chosen for name in commit.manifests})
    if split not in splits:
        raise DataError(f"Dataset {dataset.name} has no such split", found=split, remedy=f"It has {', '.join(splits)}.")
    own = dataset.masks(split, None if commits is None else chosen[-1].number)
    digests = tuple(sorted({*masks, *own}))
    common = {
        "dataset": dataset.name,
        "split": split,
        "commits": tuple(commit.number for commit in chosen),
        "manifests": tuple(_manifest_digest(commit, split) for commit in chosen),
        "masks": digests,
        "window": window,
        "order_version": ORDER_VERSION,
        "spec": spec,
    }
    loaded = [load_mask(dataset.backend, dataset.name, digest) for digest in digests]
    totals = [(commit.number, commit.totals.get(split)) for commit in chosen]
    sizes = [(number, 0 if not t else t.tokens if kind == "tokens" else t.documents) for number, t in totals]
    return chosen, tuple(kept_ranges(size, number, split, loaded).tokens for number, size in sizes), common


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


def kept_ranges(total: int, commit: int, split: str, masks: Sequence[Mask]) -> KeptRanges:
    """The tokens, or records, of a commit's `total` that masks leave, without a read from the store."""
    starts, stops = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
    for mask in masks:
        if mask.split != split:
            raise DataError("a mask of another split", found=mask.split, remedy=f"This view is of {split}.")
        documents = mask.documents
        part = slice(*np.searchsorted(documents.commit, [commit, commit + 1]).tolist())
        starts.append(documents.position[part])
        stops.append(documents.position[part] + documents.stop[part] - documents.start[part])
    return KeptRanges(total, np.concatenate(starts), np.concatenate(stops))
