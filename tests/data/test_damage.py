"""Damaged chunks: never delivered; quarantined in the order log, or the loader stops (promise P2)."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.data.plan.order_log import replay
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from fmscale.store.tiers.fetch import CorruptChunk
from tests.helpers.corpus import Corpus, T, store_corpus
from tests.helpers.segments import flip, truncate


def token_shards(store: Backend) -> list[str]:
    return [info.key for info in store.list_objects("datasets/corpus/segments") if "/tokens/c/" in info.key]


def flip_first(store: Backend, key: str) -> None:
    flip(store, key, 100)


def flip_document_ends(store: Backend, key: str) -> None:
    flip(store, key.replace("/tokens/c/0", "/document_ends/c/0").replace("/tokens/c/1", "/document_ends/c/0"), 9)


def flip_seal(store: Backend, key: str) -> None:
    flip(store, key.split("/tokens/")[0] + "/seal.json", 20)


def flip_checksums(store: Backend, key: str) -> None:
    path = key.split("/tokens/")[0] + "/checksums.arrow"
    flip(store, path, store.head(path).bytes // 2)


def cut(store: Backend, key: str) -> None:
    truncate(store, key, 1000)


def remove(store: Backend, key: str) -> None:
    store.delete(key)


TOKEN_DAMAGES: list[Callable[[Backend, str], None]] = [flip_first, cut, remove]
DAMAGES = [*TOKEN_DAMAGES, flip_document_ends, flip_seal, flip_checksums]


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def corpus(store: Backend) -> Corpus:
    return store_corpus(store)


def open_corpus(store: Backend, **options: object) -> Loader:
    arguments: dict[str, object] = {"dataset": "corpus", "sequence_length": T, "batch": 8, "seed": 3}
    arguments["quarantine_share"] = 0.5
    return open_loader(store, **(arguments | options))  # type: ignore[arg-type]


def epoch(loader: Loader, samples: int) -> dict[int, tuple[int, bytes]]:
    found = {}
    with loader:
        for batch in loader:
            for i in range(batch.rows):
                row = batch.tokens[i].numpy().astype(np.uint16).tobytes()
                found[int(batch.k[i])] = (int(batch.row[i]), row)
            if batch.last_of_step and loader.k >= samples:
                return found
    raise AssertionError("the loader ended")


@pytest.mark.parametrize("damage", TOKEN_DAMAGES)
def test_without_an_order_log_the_loader_stops_and_names_the_chunk(
    store: Backend, corpus: Corpus, damage: Callable[[Backend, str], None]
) -> None:
    shard = token_shards(store)[1]
    damage(store, shard)
    with pytest.raises(CorruptChunk, match=shard) as caught:
        epoch(open_corpus(store), len(corpus.rows()))
    assert "dataset verify" in caught.value.remedy


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_an_order_log_damaged_rows_are_replaced_and_nothing_else_moves(
    store: Backend, corpus: Corpus, damage: Callable[[Backend, str], None]
) -> None:
    rows = corpus.rows()
    samples = len(rows) // 8 * 8
    whole = epoch(open_corpus(store), samples)
    damage(store, token_shards(store)[1])
    loader = open_corpus(store, run="r")
    broken = epoch(loader, samples)
    quarantined = {row for ban in loader.plan.bans for first, stop in ban.rows for row in range(first, stop)}
    assert quarantined
    for k in range(samples):
        row, tokens = broken[k]
        assert row not in quarantined
        np.testing.assert_array_equal(np.frombuffer(tokens, np.uint16), rows[row])
        if whole[k][0] not in quarantined:
            assert broken[k] == whole[k]


def test_a_lost_object_costs_one_new_plan_a_unit(store: Backend, corpus: Corpus) -> None:
    """Not one a chunk: each drops all units that were read ahead."""
    remove(store, token_shards(store)[0])
    loader = open_corpus(store, run="r")
    epoch(loader, len(corpus.rows()) // 8 * 8)
    rows = {row for ban in loader.plan.bans for first, stop in ban.rows for row in range(first, stop)}
    units = {int(unit) for unit in loader.plan.sources[0].view.units.unit_of(np.array(sorted(rows)))[0]}
    assert len(rows) > 200
    assert len(loader.plan.bans) == len(units)


def test_the_substitutes_are_the_same_when_the_run_is_replayed(store: Backend, corpus: Corpus) -> None:
    samples = len(corpus.rows()) // 8 * 8
    for shard in token_shards(store)[:2]:
        flip_first(store, shard)
    first = epoch(open_corpus(store, run="r"), samples)
    again = epoch(open_corpus(store, run="r"), samples)
    assert first == again
    plan = replay(Log(store, "runs/r", RUN_KINDS))
    assert plan is not None
    planned = plan.samples(np.arange(samples, dtype=np.uint64)).row
    assert [first[k][0] for k in range(samples)] == planned.tolist()


def test_a_quarantine_is_in_the_log_before_anything_of_it_is_delivered(store: Backend, corpus: Corpus) -> None:
    flip_first(store, token_shards(store)[0])
    log = Log(store, "runs/r", RUN_KINDS)
    with open_corpus(store, run="r") as loader:
        for batch in itertools.islice(loader, len(corpus.rows()) // 8):
            plan = replay(log)
            assert plan is not None
            assert (plan.samples(batch.k).row == batch.row).all()
        entries = [entry.kind for entry in log.entries()]
    assert "quarantine" in entries


def test_beyond_its_budget_of_rows_a_run_stops_and_names_the_object(
    store: Backend, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fmscale.data.sample_loader.QUARANTINE_ROWS", 8)
    for shard in token_shards(store):
        remove(store, shard)
        if len(token_shards(store)) == 1:
            break
    with pytest.raises(DataError, match="rows of corpus cannot be used, more than the budget of") as caught:
        epoch(open_corpus(store, run="r", quarantine_share=0.1), len(corpus.rows()))
    assert "/tokens/c/" in str(caught.value.found)
    assert "quarantine_share" in caught.value.remedy
    assert any("cannot be used and are left out" in record.getMessage() for record in caplog.records) == bool(
        replay(Log(store, "runs/r", RUN_KINDS)).bans  # type: ignore[union-attr]
    )


def test_on_corrupt_stop_stops_also_with_a_run(store: Backend, corpus: Corpus) -> None:
    flip_first(store, token_shards(store)[0])
    with pytest.raises(CorruptChunk):
        epoch(open_corpus(store, run="r", on_corrupt="stop"), len(corpus.rows()))


def test_resuming_a_run_with_a_quarantine_goes_on_exactly(store: Backend, corpus: Corpus) -> None:
    samples = len(corpus.rows()) // 8 * 8
    flip_first(store, token_shards(store)[0])
    whole = epoch(open_corpus(store, run="r"), samples)
    with open_corpus(store, run="r") as loader:
        for _ in range(5):
            next(loader)
        state = loader.state_dict()
    again = open_corpus(store, run="r")
    again.load_state_dict(state)
    rest = epoch(again, samples)
    assert min(rest) == 40
    assert all(rest[k] == whole[k] for k in rest if k in whole)
