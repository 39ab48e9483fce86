"""Lengths of a source's samples by row, before any record is read: forwards are dealt from them."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.data.samples.protocol import Spec
from fmscale.data.samples.segment_sizes import require_columns
from fmscale.data.samples.specs import open_spec, size_text
from fmscale.data.views.placement import Placement
from fmscale.data.views.token_view import TokenView
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.columns import Column, column_key, open_column

SIZE = "size"
"""Name of the column of sizes: uint32, an upper bound of the length of each record's sample."""


class RowSizes:
    """Rows of a token view: all of a length."""

    def __init__(self, view: TokenView, spec: Spec) -> None:
        row = np.zeros(view.sequence_length, dtype=view.dtype)
        self._length = spec.size({"tokens": row, "pieces": (view.sequence_length,)})
        self._rows = view.units.N

    def take(self, rows: U64) -> NDArray[np.int64]:
        """Upper bounds of the lengths of these rows' samples."""
        return np.full(len(rows), self._length, dtype=np.int64)

    def outside(self, most: int) -> U64:
        """Rows, sorted, whose samples are empty or longer than `most`: none, or all."""
        return np.arange(0 if 0 < self._length <= most else self._rows, dtype=np.uint64)


class ColumnSizes:
    """Lengths from a derived column of each commit; `cut` is the length to which longer samples are cut."""

    def __init__(self, placement: Placement, columns: Sequence[Column | None], cut: int | None) -> None:
        self._placement = placement
        self._columns = columns
        self._cut = cut

    def take(self, rows: U64) -> NDArray[np.int64]:
        """Upper bounds of the lengths of these rows' samples, after a cut."""
        out = np.empty(len(rows), dtype=np.int64)
        commits, positions = self._placement.positions(rows)
        for commit in np.unique(commits).tolist():
            column, part = self._columns[commit], commits == commit
            assert column is not None, "a commit with rows has a column"
            out[part] = column.take(positions[part])
        return out if self._cut is None else np.minimum(out, self._cut)

    def outside(self, most: int) -> U64:
        """Rows, sorted, whose samples are empty or, uncut, longer than `most`. Reads only the parts of columns with
        such a size.
        """
        most = most if self._cut is None else 2**32
        rows = [
            self._placement.rows_at(commit, column.outside(1, most))
            for commit, column in enumerate(self._columns)
            if column is not None
        ]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.uint64)


SampleSizes = RowSizes | ColumnSizes
"""Lengths of a source's samples."""


class RowColumn:
    """Values of a derived column of each commit, by row."""

    def __init__(self, placement: Placement, columns: Sequence[Column | None]) -> None:
        self._placement = placement
        self._columns = columns

    def value(self, row: int) -> np.ndarray:
        """The value of a row's record. Raises CorruptData, and the errors of the store."""
        [commit], position = self._placement.positions(np.array([row], dtype=np.uint64))
        column = self._columns[commit]
        assert column is not None, "a commit with rows has a column"
        values: np.ndarray = column.take(position)[0]
        return values


def open_parts(backend: Backend, placement: Placement, spec: Spec) -> dict[str, RowColumn]:
    """The derived columns that are parts of a spec's samples, by name. Raises DataError, with the command, for a commit
    without such a column.
    """
    view, out = placement.view, {}
    for name, maker in getattr(spec, "derived", {}).items():
        columns = [
            open_column(backend, column_key(view.dataset, manifest, name, maker)) if manifest else None
            for manifest in view.manifests
        ]
        lacking = [n for n, m, column in zip(view.commits, view.manifests, columns, strict=True) if m and not column]
        if lacking:
            precision = json.loads(maker)["precision"]
            raise DataError(
                f"commit {lacking[0]} of dataset {view.dataset} has no column {name} of these weights",
                found=f"split {view.split}, {maker}",
                remedy=f"Run `fmscale dataset derive STORE/{view.dataset} --column {name} --with RUN@STEP --precision "
                f"{precision} --split {view.split}`, with the RUN@STEP of objective.{name}.",
            )
        out[name] = RowColumn(placement, columns)
    return out


def open_sizes(backend: Backend, placement: Placement) -> SampleSizes:
    """The sizes of a view's samples. Raises DataError, with the command, if a commit has no column of sizes,
    ConfigError if its records have no column of the spec.
    """
    view = placement.view
    spec = open_spec(backend, view.spec)
    if isinstance(view, TokenView):
        return RowSizes(view, spec)
    columns: list[Column | None] = []
    for number, manifest in zip(view.commits, view.manifests, strict=True):
        column = open_column(backend, column_key(view.dataset, manifest, SIZE, size_text(spec))) if manifest else None
        if manifest and column is None:
            found = [one for one in placement.manifests if one is not None]
            require_columns(backend, found, spec, f"split {view.split} of dataset {view.dataset}")
            raise DataError(
                f"commit {number} of dataset {view.dataset} has no column of sizes for the spec of its samples",
                found=size_text(spec),
                remedy=f"Run `fmscale dataset derive STORE/{view.dataset} --column size --config CONFIG`, "
                f"or instead of --config `--split {view.split} --spec SPEC`, with the spec as the config has it.",
            )
        columns.append(column)
    return ColumnSizes(placement, columns, getattr(spec, "max_tokens", None))
