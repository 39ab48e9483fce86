"""Placement of a view's rows: unit → rows → kept tokens or records → those of the commit → segments.

Opening a placement reads masks and no segment; the search for a unit's spans reads the manifest alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fmscale.data.order.feistel import U64
from fmscale.data.views.mask import Documents, Mask, load_mask
from fmscale.data.views.view import View, kept_ranges, view_commits
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.datasets.manifest import Manifest, SegmentRow


@dataclass(frozen=True, slots=True)
class SegmentSpan:
    """Tokens, or records, that follow one another in one segment."""

    segment: int
    """Index of the segment in the commit's manifest."""
    start: int
    """First token in the segment, or first record."""
    count: int
    """Number of tokens, or records."""


class Placement:
    """Finds the tokens or records of units and rows of one view; safe across threads."""

    def __init__(self, view: View, manifests: Sequence[Manifest | None], masks: Sequence[Mask] = ()) -> None:
        """`manifests` and `masks` belong to the view, in the view's order."""
        self.view = view
        self.manifests = tuple(manifests)
        """Manifest of each of the view's commits; None where a commit lacks the split."""
        self._tokens = view.kind == "tokens"
        self._kept = [
            kept_ranges(self._size(manifest) if manifest else 0, commit, view.split, masks)
            for commit, manifest in zip(view.commits, manifests, strict=True)
        ]
        # 8,192 entries take 1 MB: successive units of a window mostly lie in different segments.
        self._sizes = lru_cache(8192)(lambda commit, segment: self._size(self.manifest(commit).row(segment)))

    def manifest(self, commit: int) -> Manifest:
        """Manifest of a commit (an index) that has rows."""
        manifest = self.manifests[commit]
        assert manifest is not None, "a commit without the split has no rows"
        return manifest

    def pieces(self, unit: int) -> tuple[int, list[SegmentSpan]]:
        """(index into the view's commits, pieces in order) of a unit's tokens: its rows one after another."""
        length = self.view.row_length
        commit, row, count = self.view.units.span(unit)
        return commit, self._pieces(commit, row * length, (row + count) * length)

    def row_pieces(self, row: int) -> tuple[int, list[SegmentSpan]]:
        """(index into the view's commits, pieces in order) of one row's tokens."""
        units, length = self.view.units, self.view.row_length
        unit, offset = units.unit_of(np.array([row], dtype=np.uint64))
        commit, first, _ = units.span(int(unit[0]))
        first += int(offset[0])
        return commit, self._pieces(commit, first * length, (first + 1) * length)

    def positions(self, rows: U64) -> tuple[NDArray[np.intp], U64]:
        """(index into the view's commits, position of the first token or record in the commit's split) of rows."""
        units, commits = self.view.units, np.zeros(len(rows), dtype=np.intp)
        if len(self.view.commits) > 1:
            first = np.array([units.first_row(index) for index in range(len(self.view.commits))], dtype=np.uint64)
            commits = np.searchsorted(first, rows, side="right") - 1
        positions = np.empty(len(rows), dtype=np.uint64)
        for commit in np.unique(commits).tolist():
            part = commits == commit
            places = (rows[part] - np.uint64(units.first_row(commit))) * np.uint64(self.view.row_length)
            positions[part] = self._kept[commit].positions(places)
        return commits, positions

    def rows_at(self, commit: int, positions: U64) -> U64:
        """Rows that begin at these positions of a commit's split, without positions that masks leave out."""
        places = self._kept[commit].place(positions)
        kept = self._kept[commit].positions(places) == positions
        rows: U64 = places[kept] // np.uint64(self.view.row_length) + np.uint64(self.view.units.first_row(commit))
        return rows

    def rows_of(self, documents: Documents) -> list[tuple[int, int]]:
        """Ranges [first, stop) of row ids that hold a token of any of the documents: sorted, disjoint.

        Documents of commits outside the view have no rows.
        """
        length, ranges = np.uint64(self.view.row_length), []
        for index, (number, manifest) in enumerate(zip(self.view.commits, self.manifests, strict=True)):
            indexes = np.flatnonzero(documents.commit == number)
            if manifest is None or not indexes.size:
                continue
            position = documents.position[indexes]
            start = self._kept[index].place(position)
            stop = self._kept[index].place(position + documents.stop[indexes] - documents.start[indexes])
            start, stop = start[start < stop], stop[start < stop]
            rows = np.uint64(self.view.rows[index])
            low = np.minimum(start // length, rows)
            high = np.minimum((stop + length - np.uint64(1)) // length, rows)
            first = self.view.units.first_row(index)
            ranges += [(first + int(a), first + int(b)) for a, b in zip(low, high, strict=True) if a < b]
        return merged(ranges)

    def _size(self, part: Manifest | SegmentRow) -> int:
        return part.tokens if self._tokens else part.documents

    def _pieces(self, commit: int, start: int, stop: int) -> list[SegmentSpan]:
        manifest = self.manifest(commit)
        out: list[SegmentSpan] = []
        for first, count in self._kept[commit].spans(start, stop):
            segment, offset = manifest.place(first, records=not self._tokens)
            while count:
                take = min(count, self._sizes(commit, segment) - offset)
                if take:
                    out.append(SegmentSpan(segment, offset, take))
                count, segment, offset = count - take, segment + 1, 0
        return out


def open_placement(dataset: Dataset, view: View) -> Placement:
    """The placement of a view of the dataset. Raises DataError if its commits no longer exist, and CorruptData for a
    damaged mask.
    """
    commits = view_commits(dataset, view)
    masks = [load_mask(dataset.backend, dataset.name, digest) for digest in view.masks]
    manifests = [commit.manifests.get(view.split) for commit in commits]
    return Placement(view, manifests, masks)


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges [first, stop) sorted and joined where they touch."""
    out: list[tuple[int, int]] = []
    for first, stop in sorted(ranges):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((first, stop))
    return out
