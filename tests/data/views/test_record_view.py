"""Views of records with masks: the records of a row, found through commits, segments and masks."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.views.mask import find_documents, load_mask, make_mask
from fmscale.data.views.placement import SegmentSpan, open_placement
from fmscale.data.views.record_view import make_record_view
from fmscale.errors import DataError
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.open import open_store
from tests.helpers.record_datasets import record_dataset
from tests.helpers.records import record_id

COMMITS = ((5, 1, 8), (3,), (6, 2))
"""Records of the segments of each commit."""
ALL = [(commit, unit, row) for commit, units in enumerate(COMMITS) for unit, n in enumerate(units) for row in range(n)]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Three commits of small segments."""
    store = open_store("memory://record-views")
    for commit, units in enumerate(COMMITS):
        tables = [pa.table({"n": list(range(n))}) for n in units]
        found = record_dataset(store, "pictures", tables, first=commit * 10**7)
    return found


def id_of(place: tuple[int, int, int]) -> bytes:
    commit, unit, row = place
    return record_id(commit * 10**7 + unit * 10**6 + row)


def places(commit: int, pieces: list[SegmentSpan]) -> list[tuple[int, int, int]]:
    return [(commit, piece.segment, piece.start + i) for piece in pieces for i in range(piece.count)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.sampled_from(ALL), min_size=1), max_size=3), st.integers(1, 9))
def test_masked_records_are_in_no_row(dataset: Dataset, picks: list[set[tuple[int, int, int]]], unit_rows: int) -> None:
    masks = [make_mask(dataset, find_documents(dataset, ids=map(id_of, chosen))) for chosen in picks]
    out = set[tuple[int, int, int]]().union(*picks)
    kept = [place for place in ALL if place not in out]
    if not kept:
        with pytest.raises(DataError, match="leave no record"):
            make_record_view(dataset, spec="{}", masks=masks)
        return
    view = make_record_view(dataset, spec="{}", masks=masks, rows_per_unit=unit_rows)
    assert view.rows == tuple(sum(place[0] == commit for place in kept) for commit in range(len(COMMITS)))
    layout = open_placement(dataset, view)
    by_unit = [places(*layout.pieces(unit)) for unit in range(view.units.n)]
    assert [place for unit in by_unit for place in unit] == kept
    found = find_documents(dataset)
    for row, place in enumerate(kept):
        assert places(*layout.row_pieces(row)) == [place]
        assert layout.rows_of(found.take(np.array([ALL.index(place)]))) == [(row, row + 1)]
    if out:
        assert layout.rows_of(find_documents(dataset, ids=map(id_of, out))) == []


def test_a_mask_of_records_has_their_places(dataset: Dataset) -> None:
    found = find_documents(dataset, ids=map(id_of, [(0, 0, 4), (0, 2, 7), (2, 1, 1)]))
    assert list(zip(found.commit, found.segment, found.start, found.stop, found.position, strict=True)) == [
        (0, 0, 4, 5, 4),
        (0, 2, 7, 8, 13),
        (2, 1, 1, 2, 7),
    ]
    mask = load_mask(dataset.backend, "pictures", make_mask(dataset, found))
    assert mask.documents.id.tolist() == found.id.tolist()


def test_records_by_their_source(dataset: Dataset) -> None:
    def even(table: pa.Table) -> np.ndarray:
        return np.array([source == "0.parquet" for source in table["source"].to_pylist()])

    found = find_documents(dataset, where=even)
    assert sorted(map(bytes, found.id)) == sorted(id_of(place) for place in ALL if place[2] % 2 == 0)
