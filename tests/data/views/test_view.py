"""Views and layouts: the tokens of a row, found through commits, segments and masks."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.views.decode import decode_view
from fmscale.data.views.mask import find_documents, load_mask, make_mask
from fmscale.data.views.mask_spans import KeptRanges
from fmscale.data.views.placement import Placement, open_placement
from fmscale.data.views.token_view import TokenView, make_view
from fmscale.errors import DataError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.segments.tokens import open_segment, read_tokens
from tests.data.synthetic import synthetic_view
from tests.helpers.segments import Document, documents, write_commit

T = 16
LENGTHS = ([5, 40, 1, 17], [100], [3, 3, 3]), ([200, 2], [31]), ([7],)


@pytest.fixture
def corpus(memory_store: Backend) -> tuple[Dataset, list[list[list[Document]]]]:
    """Three commits of a few segments; the third is shorter than a row."""
    content = [
        [documents(lengths, seed=10 * commit + unit) for unit, lengths in enumerate(units)]
        for commit, units in enumerate(LENGTHS)
    ]
    for commit, units in enumerate(content):
        write_commit(memory_store, "corpus", {"train": units, "val": [documents([50])]}, job=str(commit))
    return open_dataset(memory_store, "corpus"), content


def kept_tokens(units: Sequence[Sequence[Document]], masked: set[bytes]) -> np.ndarray:
    return np.concatenate([d.tokens for docs in units for d in docs if d.id not in masked] or [np.empty(0)])


def read_unit(dataset: Dataset, layout: Placement, unit: int) -> np.ndarray:
    index, pieces = layout.pieces(unit)
    commit = dataset.commit(layout.view.commits[index])
    parts = []
    for piece in pieces:
        segment = open_segment(dataset.backend, *commit.manifests["train"].segment(piece.segment))
        parts.append(read_tokens(dataset.backend, segment, piece.start, piece.count))
    return np.concatenate(parts)


def check_rows(dataset: Dataset, view: TokenView, expected: list[np.ndarray]) -> None:
    """Units hold the rows of each commit one after another, cut from its kept tokens."""
    layout = open_placement(dataset, view)
    assert view.tokens == tuple(len(tokens) for tokens in expected)
    assert view.rows == tuple(len(tokens) // T for tokens in expected)
    got = np.concatenate([read_unit(dataset, layout, unit) for unit in range(view.units.n)])
    rows = np.concatenate([tokens[: len(tokens) // T * T] for tokens in expected])
    assert np.array_equal(got, rows)
    for row in range(view.units.N):
        _, pieces = layout.row_pieces(row)
        assert sum(piece.count for piece in pieces) == T


@pytest.mark.parametrize("rows_per_unit", [1, 3, 100])
def test_rows_are_slices_of_each_commit(corpus: tuple[Dataset, list[list[list[Document]]]], rows_per_unit: int) -> None:
    dataset, content = corpus
    view = make_view(dataset, sequence_length=T, rows_per_unit=rows_per_unit)
    check_rows(dataset, view, [kept_tokens(units, set()) for units in content])
    assert (view.tokenizer, view.bos, view.eos, view.dtype) == (dataset.commits()[0].tokenizer, None, 0, "uint16")


@pytest.mark.parametrize("picks", [[(0, 0, 1)], [(0, 0, 0), (0, 1, 0), (1, 0, 1)], [(0, 2, 2), (1, 0, 0), (2, 0, 0)]])
def test_masked_documents_are_gone(
    corpus: tuple[Dataset, list[list[list[Document]]]], picks: list[tuple[int, int, int]]
) -> None:
    dataset, content = corpus
    ids = [content[c][u][d].id for c, u, d in picks]
    # Two masks that overlap in one document.
    masks = [make_mask(dataset, find_documents(dataset, ids=part)) for part in (ids, ids[:1])]
    view = make_view(dataset, sequence_length=T, rows_per_unit=3, masks=masks)
    check_rows(dataset, view, [kept_tokens(units, set(ids)) for units in content])
    assert view.digest != make_view(dataset, sequence_length=T, rows_per_unit=3).digest
    assert view.digest == make_view(dataset, sequence_length=T, rows_per_unit=3, masks=masks[::-1]).digest


def test_rows_that_hold_a_document(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    dataset, content = corpus
    masked = content[0][0][1].id
    mask = make_mask(dataset, find_documents(dataset, ids=[masked]))
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=3, masks=[mask]))
    first = 0
    for units in content:
        kept = [d for docs in units for d in docs if d.id != masked]
        ends = np.cumsum([0] + [len(d.tokens) for d in kept])
        rows = int(ends[-1]) // T
        for doc, (start, stop) in zip(kept, pairwise(ends.tolist()), strict=True):
            expected = {first + r for r in range(start // T, min((stop - 1) // T + 1, rows))}
            ranges = layout.rows_of(find_documents(dataset, ids=[doc.id]))
            assert {r for a, b in ranges for r in range(a, b)} == expected
        first += rows
    assert layout.rows_of(find_documents(dataset, ids=[masked])) == []
    everything = layout.rows_of(find_documents(dataset))
    assert everything == [(0, layout.view.units.N)]


def test_json_round_trip_and_digest(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    view = make_view(corpus[0], sequence_length=T)
    again = decode_view(json.dumps(view.to_json()))
    assert again == view
    assert again.digest == view.digest
    changed = {
        "commits": (0, 1, 3),
        "manifests": ("", "", ""),
        "masks": ("0" * 32,),
        "tokens": (1, 2, 3),
        "spec": '{"kind":"text"}',
    }
    for field in fields(TokenView):
        value = getattr(view, field.name)
        other: Any = changed.get(field.name) or ("other" if isinstance(value, str) else (value or 0) + 1)
        assert replace(view, **{field.name: other}).digest != view.digest, field.name


@pytest.mark.parametrize("change", [{"format_version": 3}, {"order_version": 2}, {"packing": None, "extra": 1}])
def test_views_of_another_version(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        decode_view({**synthetic_view((5,)).to_json(), **change})


@pytest.mark.parametrize(("length", "rows"), [(4096, 32), (4097, 32), (2048, 64), (100, 1311), (200_000, 1)])
def test_a_unit_just_reaches_256_kib(
    corpus: tuple[Dataset, list[list[list[Document]]]], length: int, rows: int, memory_store: Backend
) -> None:
    write_commit(memory_store, "long", {"train": [documents([400_000])]})
    view = make_view(open_dataset(memory_store, "long"), sequence_length=length)
    assert view.rows_per_unit == rows
    assert (rows - 1) * length * 2 < 256 * 1024 <= rows * length * 2


def test_some_commits_only(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    dataset, content = corpus
    numbers = [commit.number for commit in dataset.commits()]
    view = make_view(dataset, sequence_length=T, commits=numbers[1:2])
    check_rows(dataset, view, [kept_tokens(content[1], set())])
    assert make_view(dataset, sequence_length=T, split="val").rows == (3, 3, 3)


def test_views_that_cannot_be(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    dataset = corpus[0]
    with pytest.raises(DataError, match="no such split") as error:
        make_view(dataset, sequence_length=T, split="test")
    assert "train, val" in error.value.remedy
    with pytest.raises(DataError, match="shorter than a row") as error:
        make_view(dataset, sequence_length=10**6)
    assert "sequence_length below 234" in error.value.remedy
    with pytest.raises(DataError, match="at least 1"):
        make_view(dataset, sequence_length=0)
    mask = make_mask(dataset, find_documents(dataset, split="val"), split="val")
    with pytest.raises(DataError, match="another split"):
        make_view(dataset, sequence_length=T, masks=[mask])
    with pytest.raises(DataError):
        make_view(dataset, sequence_length=T, commits=[99])


def test_a_view_knows_its_own_commits(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    view = make_view(corpus[0], sequence_length=T)
    with pytest.raises(DataError, match="not the one"):
        open_placement(corpus[0], replace(view, manifests=("0" * 32, *view.manifests[1:])))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8), st.data())
def test_kept_tokens_against_counting(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    total = 64
    pairs = [(a, min(a + n, total)) for a, n in spans]
    columns = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    kept = KeptRanges(total, columns[:, 0], columns[:, 1])
    left = [i for i in range(total) if not any(a <= i < b for a, b in pairs)]
    assert kept.tokens == len(left)
    start = data.draw(st.integers(0, len(left)))
    stop = data.draw(st.integers(start, len(left)))
    spans_ = kept.spans(start, stop)
    assert [i for first, count in spans_ for i in range(first, first + count)] == left[start:stop]
    assert all(count for _, count in spans_) or start == stop
    positions = np.arange(total + 1, dtype=np.uint64)
    assert kept.place(positions).tolist() == [sum(i < p for i in left) for p in range(total + 1)]


def test_a_mask_is_loaded_as_it_was_made(corpus: tuple[Dataset, list[list[list[Document]]]]) -> None:
    dataset = corpus[0]
    found = find_documents(dataset)
    digest = make_mask(dataset, found.take(np.arange(len(found.commit))[::-1]))
    assert digest == make_mask(dataset, found)
    mask = load_mask(dataset.backend, "corpus", digest)
    for name in found._fields:
        assert np.array_equal(getattr(mask.documents, name), getattr(found, name))


def test_a_view_keeps_its_name() -> None:
    """Runs and order logs name views by digest: the JSON of version 1 must not change."""
    assert synthetic_view((5, 0, 7)).digest == "9748f1fceff70a6416334003438ac7a4"
