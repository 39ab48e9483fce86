"""The audit of runs with several stages, masks and bans: declared changes are no faults, all others are faults."""

import json
from pathlib import Path
from typing import Any

import pytest

from fmscale.config import SourceConfig
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.sources import make_sources
from fmscale.data.views.mask import find_documents, make_mask
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.data.provenance.test_trace import BATCH, deliver, run
from tests.helpers.corpus import Corpus, T, store_corpus


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def corpus(store: Backend) -> Corpus:
    return store_corpus(store)


def audited(store: Backend, path: Path, name: str = "demo") -> tuple[int, dict[str, Any]]:
    code, output = run(store, "audit", str(path), "--json", run=name)
    return code, json.loads(output)


def order_log(store: Backend) -> OrderLog:
    return OrderLog(Log(store, "runs/demo", RUN_KINDS))


def test_each_stage_has_its_own_weights(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    store_corpus(store, "other", seed=5)
    first = [SourceConfig(dataset="corpus", weight=3), SourceConfig(dataset="other", weight=1)]
    second = [SourceConfig(dataset="corpus", weight=1), SourceConfig(dataset="other", weight=3)]
    deliver(store, 1, sources=first)
    order_log(store).add_stage(400, make_sources(store, second, sequence_length=T, seed=3))
    path = tmp_path / "rank0.arrow"
    deliver(store, 100, path, sources=second)
    code, report = audited(store, path)
    assert (code, report["problems"]) == (0, [])
    assert report["mixture_error"] < 4

    # The same samples, audited as those of a run with only the first weights.
    sources = make_sources(store, first, sequence_length=T, seed=3)
    OrderLog(Log(store, "runs/flat", RUN_KINDS)).start(sources)
    code, report = audited(store, path, "flat")
    assert code == 1
    assert "samples away from its share" in report["problems"][0]


def test_masked_documents_are_not_missed_and_must_not_come(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    dataset = open_dataset(store, "corpus")
    out = [document.id for document in corpus.commits[0][20:120]]
    masks = (make_mask(dataset, find_documents(dataset, ids=out)),)
    masked, whole = tmp_path / "masked.arrow", tmp_path / "whole.arrow"
    steps = 2 * len(corpus.rows()) // BATCH
    deliver(store, steps, masked, sources=[SourceConfig(dataset="corpus", masks=masks)])
    code, report = audited(store, masked)
    assert (code, report["problems"]) == (0, [])

    deliver(store, steps, whole, run="unmasked")
    assert audited(store, whole, "unmasked")[0] == 0
    code, report = audited(store, whole)
    assert code == 1
    tokens = sum(len(document.tokens) for document in corpus.commits[0][20:120])
    assert report["tokens_masked"] > tokens
    assert f"{report['tokens_masked']} tokens delivered of masked documents" in report["problems"]
    code, report = audited(store, masked, "unmasked")
    assert code == 1
    assert report["tokens_missing"] > tokens - 2 * T, "a run without the mask misses them"


def test_rows_that_stand_in_for_banned_ones_are_no_duplicates(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    deliver(store, 1)
    banned, path = [document.id for document in corpus.commits[0][30:60]], tmp_path / "rank0.arrow"
    order_log(store).ban_documents(open_dataset(store, "corpus"), banned, from_k=0)
    rows = len(corpus.rows())
    delivered = deliver(store, 2 * rows // BATCH, path)
    assert len({one.row for one in delivered.values()}) < rows
    code, report = audited(store, path)
    assert (code, report["problems"]) == (0, [])

    sources = make_sources(store, [SourceConfig(dataset="corpus")], sequence_length=T, seed=3)
    OrderLog(Log(store, "runs/free", RUN_KINDS)).start(sources)
    code, report = audited(store, path, "free")
    assert code == 1
    assert report["tokens_twice"] > 0
    assert report["tokens_missing"] > 0
