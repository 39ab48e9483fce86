"""Units from the reader, compared with the stored documents, token by token."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fmscale.data.batch import UnitDocuments
from fmscale.data.reading import unit_reader
from fmscale.data.reading.unit_reader import UnitReader
from fmscale.data.views.mask import find_documents, make_mask
from fmscale.data.views.placement import Placement, open_placement
from fmscale.data.views.token_view import make_view
from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from fmscale.store.segments.tokens_writer import TOKEN_CHUNK_BYTES
from fmscale.store.tiers.fetch import Fetcher
from tests.helpers.faulty_backend import Fault, FaultyBackend
from tests.helpers.segments import Document, documents, flip, write_commit

T = 129
CHUNK = TOKEN_CHUNK_BYTES // 2
"""Tokens of a chunk, uint16."""
SHARD = 4 * CHUNK
"""Tokens of a small shard."""
SMALL_UNIT, LARGE_UNIT = 11, 700
"""Rows: many units in a chunk, and several chunks and shards in a unit."""


def lengths(seed: int, count: int) -> list[int]:
    rng = np.random.default_rng(seed)
    found = np.maximum(rng.lognormal(4.0, 1.0, count).astype(int), 1)
    found[::7] = 1
    return [int(length) for length in found]


def store_content(store: Backend, dtype: str = "uint16") -> list[list[list[Document]]]:
    """Documents by commit and segment: small shards, one long document over chunks, and one large shard."""
    first = [
        documents(lengths(1, 1200), dtype=dtype, seed=1),
        documents([3, 80_000, 1, 1, 2000], dtype=dtype, seed=2),
        documents([2], dtype=dtype, seed=3),
        documents(lengths(4, 300), dtype=dtype, seed=4),
    ]
    second = [documents(lengths(5, 1500), dtype=dtype, seed=5)]
    write_commit(store, "corpus", {"train": first}, job="one", shard_tokens=SHARD, dtype=dtype)
    write_commit(store, "corpus", {"train": second}, job="two", dtype=dtype)
    write_commit(store, "corpus", {"test": [documents([9], dtype=dtype)]}, job="three", dtype=dtype)
    return [first, second]


@pytest.fixture(scope="module")
def memory() -> Backend:
    return open_store("memory://unit-reader-tests")


@pytest.fixture(scope="module")
def content(memory: Backend) -> list[list[list[Document]]]:
    return store_content(memory)


def masked_ids(content: list[list[list[Document]]]) -> list[bytes]:
    """Documents at the beginning and the end of segments, neighbours, one inside; a whole segment."""
    first = content[0]
    chosen = [first[0][0], first[0][1], first[0][500], first[0][-1], first[1][0], first[2][0]]
    chosen += [first[3][-1], content[1][0][700], content[1][0][-1]]
    return [doc.id for doc in chosen]


class Expected:
    """Every token of a view with its document, made by joining the stored documents."""

    def __init__(self, content: list[list[list[Document]]], layout: Placement, masked: Sequence[bytes] = ()) -> None:
        self.tokens: list[np.ndarray] = []
        self.document: list[np.ndarray] = []
        self.offset: list[np.ndarray] = []
        self.segment: list[np.ndarray] = []
        self.ids: list[bytes] = []
        for commit, rows in zip(content, layout.view.rows, strict=False):
            kept = [(doc, number) for number, docs in enumerate(commit) for doc in docs if doc.id not in set(masked)]
            parts: list[list[np.ndarray]] = [[], [], [], []]
            for doc, number in kept:
                size = len(doc.tokens)
                parts[0].append(doc.tokens)
                parts[1].append(np.full(size, len(self.ids)))
                parts[2].append(np.arange(size))
                parts[3].append(np.full(size, number))
                self.ids.append(doc.id)
            cut = rows * layout.view.row_length
            for out, part in zip((self.tokens, self.document, self.offset, self.segment), parts, strict=True):
                out.append(np.concatenate(part)[:cut])

    def unit(self, layout: Placement, unit: int) -> tuple[int, slice]:
        """A unit's commit and place in the commit's tokens: b rows each, fewer in the commit's last unit."""
        per_unit = layout.view.rows_per_unit
        for commit, rows in enumerate(layout.view.rows):
            units = -(-rows // per_unit)
            if unit < units:
                length = layout.view.row_length
                return commit, slice(unit * per_unit * length, min((unit + 1) * per_unit, rows) * length)
            unit -= units
        raise AssertionError("no such unit")


def total_units(layout: Placement) -> int:
    return sum(-(-rows // layout.view.rows_per_unit) for rows in layout.view.rows)


def check_documents(expected: Expected, commit: int, place: slice, found: UnitDocuments, ids: bool) -> None:
    inside = expected.document[commit][place]
    ends = np.append(np.flatnonzero(np.diff(inside)) + 1, len(inside))
    np.testing.assert_array_equal(found.ends, ends)
    assert found.ends.dtype == np.int64
    assert found.offset == expected.offset[commit][place.start]
    if ids:
        assert found.ids is not None
        assert found.ids.shape == (len(ends), 2)
        names = [expected.ids[number] for number in inside[ends - 1].tolist()]
        assert [row.astype("<u8").tobytes() for row in found.ids] == names
    else:
        assert found.ids is None


def slot(layout: Placement, dtype: str = "uint16") -> np.ndarray:
    return np.full(layout.view.rows_per_unit * T + 5, 12345, dtype=dtype)


@pytest.mark.parametrize("rows_per_unit", [SMALL_UNIT, LARGE_UNIT])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_every_unit_holds_the_stored_tokens_and_documents(
    memory: Backend,
    content: list[list[list[Document]]],
    rows_per_unit: int,
    ids: bool,
    whole: bool,
    masked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not whole:
        monkeypatch.setattr(unit_reader, "WHOLE_DOCUMENT_BYTES", 0)
    dataset = open_dataset(memory, "corpus")
    out = masked_ids(content) if masked else []
    masks = [make_mask(dataset, find_documents(dataset, ids=out))] if masked else []
    view = make_view(dataset, sequence_length=T, rows_per_unit=rows_per_unit, masks=masks)
    layout = open_placement(dataset, view)
    expected = Expected(content, layout, out)
    reader = UnitReader(layout, Fetcher(memory), document_ids=ids)
    assert (reader._whole is None) == (not whole)
    count = total_units(layout)
    assert count >= 4
    # The small units are many; every 5th covers all cases, because no case repeats with a period of 5.
    for unit in range(0, count, 5 if rows_per_unit == SMALL_UNIT else 1):
        into = slot(layout)
        found = reader.read(unit, into)
        commit, place = expected.unit(layout, unit)
        size = place.stop - place.start
        assert found.damaged == []
        np.testing.assert_array_equal(into[:size], expected.tokens[commit][place])
        assert (into[size:] == 12345).all(), "nothing is written behind the unit"
        check_documents(expected, commit, place, found.documents, ids)


def test_wide_tokens(memory_store: Backend) -> None:
    content = store_content(memory_store, "uint32")
    dataset = open_dataset(memory_store, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=LARGE_UNIT))
    expected = Expected(content, layout)
    reader = UnitReader(layout, Fetcher(memory_store), document_ids=True)
    for unit in range(total_units(layout)):
        into = slot(layout, "uint32")
        commit, place = expected.unit(layout, unit)
        found = reader.read(unit, into)
        np.testing.assert_array_equal(into[: place.stop - place.start], expected.tokens[commit][place])
        check_documents(expected, commit, place, found.documents, True)


def test_many_threads_read_the_same_units(memory: Backend, content: list[list[list[Document]]]) -> None:
    dataset = open_dataset(memory, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=LARGE_UNIT))
    expected = Expected(content, layout)
    reader = UnitReader(layout, Fetcher(memory), document_ids=True)

    def read(unit: int) -> None:
        into = slot(layout)
        commit, place = expected.unit(layout, unit)
        check_documents(expected, commit, place, reader.read(unit, into).documents, True)
        np.testing.assert_array_equal(into[: place.stop - place.start], expected.tokens[commit][place])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, list(range(total_units(layout))) * 6))


def test_a_rank_of_a_local_store_holds_no_large_document_arrays(
    local_store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such arrays would take memory in every rank of a node; instead the disk gets advice about them once a segment."""
    content = store_content(local_store)
    monkeypatch.setattr(unit_reader, "WHOLE_DOCUMENT_BYTES_LOCAL", 4096)
    dataset = open_dataset(local_store, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=SMALL_UNIT))
    expected = Expected(content, layout)
    told: list[str] = []
    monkeypatch.setattr(local_store, "advise", lambda key, start, length: told.append(key))
    reader = UnitReader(layout, Fetcher(local_store), document_ids=True)
    assert reader._whole is None
    for unit in range(0, total_units(layout), 5):
        found = reader.read(unit, slot(layout))
        commit, place = expected.unit(layout, unit)
        check_documents(expected, commit, place, found.documents, True)
    assert len(told) == len(set(told)) == 2 * 5  # ends and ids of five segments


@pytest.fixture
def damaged_store(memory_store: Backend) -> tuple[Backend, list[list[list[Document]]]]:
    return memory_store, store_content(memory_store)


def segment_prefix(layout: Placement, commit: int, segment: int) -> str:
    manifest = layout.manifests[commit]
    assert manifest is not None
    return manifest.segment(segment)[0]


@pytest.mark.parametrize(
    ("commit", "segment", "shard", "chunk"),
    [(0, 0, 1, 1), (0, 1, 0, 0), (0, 1, 2, 2), (1, 0, 0, 2)],
    ids=["small shard", "first of a segment", "last, padded", "inside a large shard"],
)
@pytest.mark.parametrize("rows_per_unit", [SMALL_UNIT, LARGE_UNIT])
def test_a_damaged_chunk_costs_exactly_its_tokens(
    damaged_store: tuple[Backend, list[list[list[Document]]]],
    commit: int,
    segment: int,
    shard: int,
    chunk: int,
    rows_per_unit: int,
) -> None:
    store, content = damaged_store
    dataset = open_dataset(store, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=rows_per_unit))
    expected = Expected(content, layout)
    key = f"{segment_prefix(layout, commit, segment)}/tokens/c/{shard}"
    flip(store, key, chunk * TOKEN_CHUNK_BYTES + 77)
    before = sum(len(doc.tokens) for docs in content[commit][:segment] for doc in docs)
    size = sum(len(doc.tokens) for doc in content[commit][segment])
    start = before + shard * SHARD + chunk * CHUNK
    stop = min(start + CHUNK, before + size, len(expected.tokens[commit]))
    reader = UnitReader(layout, Fetcher(store), document_ids=True)
    lost = 0
    for unit in range(total_units(layout)):
        into = slot(layout)
        number, place = expected.unit(layout, unit)
        low, high = max(place.start, start), min(place.stop, stop)
        hit = number == commit and low < high
        if rows_per_unit == SMALL_UNIT and not hit and unit % 10:
            continue
        found = reader.read(unit, into)
        tokens = expected.tokens[number][place].copy()
        if hit:
            ((first, last, error),) = found.damaged
            assert (first, last) == (low - place.start, high - place.start)
            assert (error.key, error.chunk) == (key, chunk)
            tokens[first:last] = 0
            lost += last - first
        else:
            assert found.damaged == []
        np.testing.assert_array_equal(into[: len(tokens)], tokens)
        check_documents(expected, number, place, found.documents, True)
    assert lost == stop - start


@pytest.mark.parametrize("what", ["document_ends/c/0", "document_ids/c/0/0", "seal.json", "checksums.arrow"])
def test_without_its_document_arrays_a_segment_is_lost_and_the_rest_of_the_unit_is_not(
    damaged_store: tuple[Backend, list[list[list[Document]]]], what: str
) -> None:
    store, content = damaged_store
    dataset = open_dataset(store, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=LARGE_UNIT))
    expected = Expected(content, layout)
    key = f"{segment_prefix(layout, 0, 1)}/{what}"
    flip(store, key, 9)
    reader = UnitReader(layout, Fetcher(store), document_ids=True)
    lost = 0
    for unit in range(total_units(layout)):
        into = slot(layout)
        commit, place = expected.unit(layout, unit)
        found = reader.read(unit, into)
        bad = (expected.segment[commit][place] == 1) & (commit == 0)
        listed = np.zeros(len(bad), dtype=bool)
        for first, last, error in found.damaged:
            listed[first:last] = True
            assert segment_prefix(layout, 0, 1) in error.key
        np.testing.assert_array_equal(listed, bad)
        lost += int(bad.sum())
        good = np.flatnonzero(~bad)
        np.testing.assert_array_equal(into[good], expected.tokens[commit][place][good])
        ends, ids = found.documents.ends, found.documents.ids
        assert ids is not None
        assert len(ends) == len(ids), "every end has its id"
        owner = np.searchsorted(ends, good, side="right")
        names = [expected.ids[number] for number in expected.document[commit][place][good].tolist()]
        assert [ids[i].astype("<u8").tobytes() for i in owner.tolist()] == names
    assert lost == sum(len(doc.tokens) for doc in content[0][1])


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_document_array_costs_a_unit_four_requests_however_long_it_is(
    memory_store: Backend, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Its segment is lost in any case: the chunks that are whole are not read one by one, as those of tokens are."""
    if not whole:
        monkeypatch.setattr(unit_reader, "WHOLE_DOCUMENT_BYTES", 0)
    write_commit(memory_store, "short", {"train": [documents([1] * 9000)]}, job="one")
    dataset = open_dataset(memory_store, "short")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=64))
    flip(memory_store, f"{segment_prefix(layout, 0, 0)}/document_ends/c/0", 9)
    counted = FaultyBackend(memory_store)
    (damage,) = UnitReader(layout, Fetcher(counted)).read(0, slot(layout)).damaged
    assert damage[:2] == (0, 64 * T)
    # The read, two of the store's attempts, and the read that names the bad chunk.
    assert len([call for call in counted.calls if "document_ends" in call.key]) == 4


def test_a_store_that_does_not_answer_is_no_damage(memory: Backend, content: list[list[list[Document]]]) -> None:
    dataset = open_dataset(memory, "corpus")
    layout = open_placement(dataset, make_view(dataset, sequence_length=T, rows_per_unit=LARGE_UNIT))
    faulty = FaultyBackend(memory)
    reader = UnitReader(layout, Fetcher(faulty))
    into = slot(layout)
    for key in ("seal.json", "tokens/c/1", "document_ends"):
        faulty.inject(Fault.UNAVAILABLE, key_part=key)
        with pytest.raises(StoreUnavailable):
            reader.read(0, into)
    assert reader.read(0, into).damaged == []
