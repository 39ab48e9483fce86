"""The loader delivers the plan: every row once an epoch, the same global batches at any number of ranks."""

import gc
import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fmscale.config import SourceConfig
from fmscale.data.loader import Loader
from fmscale.data.open import open_loader
from fmscale.data.reading import planner
from fmscale.data.torch_dataset import TokenDataset
from fmscale.errors import ConfigError, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.corpus import Corpus, T, store_corpus
from tests.helpers.faulty_backend import FaultyBackend
from tests.helpers.ranks import run_ranks


@pytest.fixture(scope="module")
def memory() -> Backend:
    return open_store("memory://loader-tests")


@pytest.fixture(scope="module")
def corpus(memory: Backend) -> Corpus:
    return store_corpus(memory)


def open_corpus(store: Backend | str, **options: object) -> Loader:
    arguments: dict[str, object] = {"dataset": "corpus", "sequence_length": T, "batch": 8, "seed": 3}
    return open_loader(store, **(arguments | options))  # type: ignore[arg-type]


def delivered(loader: Loader, samples: int) -> dict[int, bytes]:
    """Token bytes by sample number, for at least this rank's part of the first `samples` of the global order."""
    found: dict[int, bytes] = {}
    for batch in loader:
        for i in range(batch.rows):
            assert int(batch.k[i]) not in found
            found[int(batch.k[i])] = batch.tokens[i].numpy().tobytes()
        if batch.last_of_step and loader.k >= samples:
            loader.close()
            return found
    raise AssertionError("the loader ended")


def joined(store: Backend, samples: int, ranks: int, **options: object) -> dict[int, bytes]:
    parts = [delivered(open_corpus(store, dp_rank=rank, dp_size=ranks, **options), samples) for rank in range(ranks)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    return {k: row for part in parts for k, row in part.items()}


def test_an_epoch_holds_every_row_once_with_the_stored_tokens(memory: Backend, corpus: Corpus) -> None:
    rows = corpus.rows()
    seen = np.zeros(len(rows), dtype=int)
    with open_corpus(memory) as loader:
        for batch in loader:
            for i in range(batch.rows):
                if batch.k[i] < len(rows):
                    seen[int(batch.row[i])] += 1
                    np.testing.assert_array_equal(batch.tokens[i].numpy(), rows[int(batch.row[i])])
            if loader.k >= len(rows):
                break
    assert (seen == 1).all()


@pytest.mark.parametrize("ranks", [2, 3, 5, 8, 16])
def test_ranks_together_deliver_the_same_global_batches(memory: Backend, corpus: Corpus, ranks: int) -> None:
    alone = joined(memory, 48, 1)
    assert joined(memory, 48, ranks, micro_batch=2) == alone


def test_a_ramp_and_another_batch_size_change_nothing_but_the_cuts(memory: Backend, corpus: Corpus) -> None:
    alone = joined(memory, 60, 1, batch=1)
    ramp = joined(memory, 60, 3, batch=[(0, 4), (3, 7), (5, 16)])
    assert {k: ramp[k] for k in range(60)} == {k: alone[k] for k in range(60)}


def test_every_rank_runs_as_many_forwards_and_fillers_weigh_nothing(memory: Backend, corpus: Corpus) -> None:
    counts = []
    for rank in range(3):
        with open_corpus(memory, dp_rank=rank, dp_size=3, batch=8, micro_batch=2) as loader:
            step = list(itertools.takewhile(lambda batch: batch.step == 0, loader))
        counts.append(len(step))
        assert all(batch.tokens.shape == (2, T) for batch in step)
        for batch in step:
            assert (batch.loss_weights[batch.rows :] == 0).all()
            assert (batch.tokens[batch.rows :] == 0).all()
    assert counts == [2, 2, 2]


def test_resuming_goes_on_at_the_next_sample(memory: Backend, corpus: Corpus) -> None:
    whole = joined(memory, 400, 1)
    for steps in (1, 7, 30):
        with open_corpus(memory) as loader:
            for _ in range(steps):
                next(loader)
            state = loader.state_dict()
        assert len(repr(state)) < 1024
        with open_corpus(memory, batch=5) as again:
            again.load_state_dict(state)
            rest = delivered(again, 400)
        assert min(rest) == 8 * steps
        assert all(rest[k] == whole[k] for k in rest if k in whole)


def test_iterating_again_goes_on_where_it_stopped(memory: Backend, corpus: Corpus) -> None:
    with open_corpus(memory) as loader:
        first = [batch.k.tolist() for batch in itertools.islice(loader, 3)]
        second = [batch.k.tolist() for batch in itertools.islice(loader, 3)]
        loader.close()
        third = [batch.k.tolist() for batch in itertools.islice(loader, 3)]
    assert sorted(itertools.chain.from_iterable(first + second + third)) == list(range(72))


def test_state_of_another_plan_is_refused(memory: Backend, corpus: Corpus) -> None:
    with open_corpus(memory) as loader, open_corpus(memory, seed=4) as other:
        with pytest.raises(DataError, match="another plan"):
            other.load_state_dict(loader.state_dict())
        with pytest.raises(DataError, match="version"):
            other.load_state_dict(loader.state_dict() | {"version": 99})


def test_a_kept_batch_is_never_overwritten(memory: Backend, corpus: Corpus) -> None:
    with open_corpus(memory) as loader:
        kept = [(batch.tokens[1:3, 5:], batch.tokens.clone()) for batch in itertools.islice(loader, 50)]
    assert all(torch.equal(view, copy[1:3, 5:]) for view, copy in kept)


def test_buffers_are_reused_when_nobody_holds_them(memory: Backend, corpus: Corpus) -> None:
    with open_corpus(memory) as loader:
        pointers = set()
        for batch in itertools.islice(loader, 50):
            pointers.add(batch.tokens.data_ptr())
            del batch
    assert len(pointers) <= 3


def test_little_memory_reads_units_again_and_delivers_the_same(memory: Backend, corpus: Corpus) -> None:
    plenty = joined(memory, 600, 1)
    unit = -(-256 * 1024 // (2 * T)) * 2 * T
    loader = open_corpus(memory, memory_bytes=2 * unit, batch=2, window=1)
    assert loader._arena.capacity == 2
    few = delivered(loader, 600)
    assert set(few) >= set(plenty) - {600, 601}
    with pytest.raises(ConfigError, match="memory_bytes"):
        open_corpus(memory, memory_bytes=1000)


def test_memory_below_a_shuffle_window_is_warned_of(
    memory: Backend, corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    unit = -(-256 * 1024 // (2 * T)) * 2 * T
    open_corpus(memory).close()
    open_corpus(memory, memory_bytes=unit, dp_size=2).close()
    assert not caplog.records
    open_corpus(memory, memory_bytes=unit).close()
    assert "holds 1 of the 2 units" in caplog.text
    assert "give it 1 MiB" in caplog.text


def test_a_mixture_delivers_its_shares_and_each_source_in_its_own_order(memory: Backend) -> None:
    store_corpus(memory, "other", seed=5)
    store_corpus(memory, "corpus")
    sources = [SourceConfig(dataset="corpus", weight=3), SourceConfig(dataset="other", weight=1)]
    counts = np.zeros(2, dtype=int)
    with open_loader(memory, sources=sources, sequence_length=T, batch=8) as loader:
        for batch in itertools.islice(loader, 64):
            counts += np.bincount(batch.row_source, minlength=2)
    assert abs(counts[0] - 384) <= 2
    assert counts.sum() == 512


def test_torch_dataset_yields_whole_batches_and_refuses_workers(
    memory: Backend, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch waits so long, in vain, for the failed worker.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    with open_corpus(memory) as loader:
        dataset = TokenDataset(loader)
        item = next(iter(DataLoader(dataset, batch_size=None)))
        assert item["tokens"].shape == (8, T)
        assert item["tokens"].dtype == torch.int64
        state = dataset.state_dict()
        assert state["k"] == 8
        dataset.load_state_dict(state)
        with pytest.raises(ConfigError, match="num_workers=0"):
            next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_closing_or_dropping_a_loader_ends_its_threads(memory: Backend, corpus: Corpus, how: str) -> None:
    gc.collect()
    before = set(threading.enumerate())
    loader = open_corpus(memory, read_threads=4)
    next(loader)
    assert set(threading.enumerate()) > before
    if how == "close":
        loader.close()
    del loader
    gc.collect()
    assert set(threading.enumerate()) <= before


class Recorder(FaultyBackend):
    """Records advice and reads of token shards: (kind, key, first byte, byte after the last)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[tuple[str, str, int, int]] = []

    def advise(self, key: str, start: int, length: int) -> None:
        self.seen.append(("advise", key, start, start + length))

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        super().read_into(key, start, *buffers)
        if "/tokens/" in key:
            self.seen.append(("read", key, start, start + sum(buffer.nbytes for buffer in buffers)))


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_disk_is_told_of_every_unit_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(planner, "JUDGED_UNITS", 1)
    monkeypatch.setattr(planner, "CACHED_BYTES_PER_SECOND", float("inf") if slow else 0.0)
    disk = open_store(str(tmp_path / "store"))
    store_corpus(disk)
    recorder = Recorder(disk)
    with open_corpus(recorder, read_threads=0) as loader:
        for _ in range(60):
            next(loader)
    reads = [i for i, call in enumerate(recorder.seen) if call[0] == "read"]
    told = [("advise", *recorder.seen[i][1:]) in recorder.seen[:i] for i in reads]
    assert len(reads) > 5
    assert all(told) if slow else not all(told[len(told) // 2 :])


def test_nobody_waits_for_a_slow_disk_once_all_units_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "JUDGED_UNITS", 1)
    monkeypatch.setattr(planner, "CACHED_BYTES_PER_SECOND", float("inf"))
    disk = open_store(str(tmp_path / "store"))
    store_corpus(disk)
    with open_corpus(disk, read_threads=0) as loader:
        next(loader)
        assert loader._ahead is not None
        units = loader._ahead._planner
        epoch = loader.plan.sources[0].view.units.N
        while loader.k < 2 * epoch:
            next(loader)
        assert not units.waits


def test_wrong_rank_or_dataset_is_refused(memory: Backend, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="dp_rank"):
        open_corpus(memory, dp_rank=2, dp_size=2)
    with pytest.raises(DataError, match="corpus"):
        open_corpus(memory, dataset="corpsu")
    with pytest.raises(ConfigError, match="either dataset or sources"):
        open_corpus(memory, sources=[SourceConfig(dataset="corpus")])


def deliver_on_rank(rank: int, ranks: int, url: str) -> dict[int, bytes]:
    return delivered(open_corpus(url, dp_rank=rank, dp_size=ranks, run="shared"), 96)


def test_rank_processes_share_one_run(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    corpus_store = open_store(url)
    store_corpus(corpus_store)
    alone = joined(corpus_store, 96, 1)
    parts = run_ranks(deliver_on_rank, 2, url)
    assert {k: row for part in parts for k, row in part.items()} == alone


def test_resumed_again_and_again_at_other_sizes(memory: Backend, corpus: Corpus) -> None:
    """With a mixture, a batch ramp, a stage and a ban the ranks' joined batches equal those of a single rank."""
    names = ["corpus", *(f"elastic-{i}" for i in range(2))]
    for i, name in enumerate(names[1:]):
        store_corpus(memory, name, seed=20 + i)
    sources = [SourceConfig(dataset=name, weight=1 + i) for i, name in enumerate(names)]
    options: dict[str, object] = {"dataset": None, "sources": sources, "run": "elastic", "micro_batch": 3}
    options["batch"] = [(0, 8), (4, 7), (9, 16)]
    with open_corpus(memory, **options) as loader:
        order_log = loader._order_log
        assert order_log is not None
        made = order_log.plan.stages[0].sources
        order_log.ban(0, [(0, 40)], from_k=30)
        weights = [source.weight for source in made]
        turned = [replace(source, weight=w) for source, w in zip(made, reversed(weights), strict=True)]
        order_log.add_stage(60, turned)
    options["sources"] = [SourceConfig(dataset=name, weight=len(names) - i) for i, name in enumerate(names)]

    def part(rank: int, ranks: int, state: dict[str, object] | None, steps: int) -> tuple[Loader, dict[int, bytes]]:
        loader = open_corpus(memory, **options, dp_rank=rank, dp_size=ranks)
        if state:
            loader.load_state_dict(state)
        found: dict[int, bytes] = {}
        ends = 0
        while ends < steps:
            batch = next(loader)
            found |= {
                int(k): bytes([int(batch.row_source[i])]) + batch.tokens[i].numpy().tobytes()
                for i, k in enumerate(batch.k)
            }
            ends += batch.last_of_step
        return loader, found

    state: dict[str, object] | None = None
    joined_up: dict[int, bytes] = {}
    for ranks in (8, 3, 1, 5):
        parts = [part(rank, ranks, state, 3) for rank in range(ranks)]
        states = [loader.state_dict() for loader, _ in parts]
        assert all(one == states[0] for one in states)
        state = states[0]
        for loader, found in parts:
            loader.close()
            assert not joined_up.keys() & found.keys()
            joined_up |= found
    loader, alone = part(0, 1, None, 12)
    loader.close()
    assert joined_up == alone
    assert sorted(alone) == list(range(loader.k))
    assert len({row[0] for row in alone.values()}) == len(names)
