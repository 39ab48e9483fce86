"""Delivery records come from the engine's inputs: any earlier error shows."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from fmscale.config import SourceConfig
from fmscale.data.open import open_loader
from fmscale.data.plan.plan import Plan, Stage
from fmscale.data.provenance.delivery import DeliveryRecord, order_hash, read_records
from fmscale.data.provenance.expected import expected_samples
from fmscale.data.sources import make_sources
from fmscale.objectives.protocol import Inputs
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from fmscale.train.inputs import received, to_inputs
from tests.helpers.corpus import store_corpus

SAMPLES, BATCH, T = 64, 8, 65
COLUMNS = ["k", "source", "row", "digest", "pieces"]
Change = Callable[[Inputs], Inputs]


@pytest.fixture(scope="module")
def store() -> Backend:
    backend = open_store("memory://delivered-tests")
    store_corpus(backend)
    return backend


@pytest.fixture(scope="module")
def planned(store: Backend) -> pa.Table:
    sources = make_sources(store, [SourceConfig(dataset="corpus")], sequence_length=T, seed=3)
    return expected_samples(store, Plan([Stage(from_k=0, sources=tuple(sources))]), 0, SAMPLES)


def recorded(store: Backend, path: Path, change: Change) -> pa.Table:
    """Records of two ranks whose inputs were changed after the loader; every other microbatch has fillers."""
    paths = []
    for rank in range(2):
        paths.append(path / f"{rank}.arrow")
        loader = open_loader(
            store,
            dataset="corpus",
            sequence_length=T,
            batch=BATCH,
            micro_batch=3,
            seed=3,
            dp_rank=rank,
            dp_size=2,
            document_ids=True,
        )
        with loader, DeliveryRecord(paths[-1], "uint16") as record:
            for batch in itertools.takewhile(lambda one: one.step < SAMPLES // BATCH, loader):
                record.add(received(batch, change(to_inputs(batch, "cpu"))))
    return read_records(paths)


def test_rows_as_the_engine_gets_them_are_those_of_the_plan(store: Backend, planned: pa.Table, tmp_path: Path) -> None:
    found = recorded(store, tmp_path, lambda rows: rows)
    assert found.select(COLUMNS).equals(planned.select(COLUMNS))
    last = [pieces[-1]["tokens"] for pieces in found["pieces"].to_pylist()]
    assert 1 in last, "no row has a document of which it holds only the last label"


def rolled(rows: Inputs) -> Inputs:
    return replace(rows, tokens_BT=rows.tokens_BT.roll(1, 1), labels_BT=rows.labels_BT.roll(1, 1))


def swapped(rows: Inputs) -> Inputs:
    """Two tokens that differ, in inputs and labels alike."""
    tokens, labels = rows.tokens_BT.clone(), rows.labels_BT.clone()
    i = 1 + int((tokens[0, 1:-1] != tokens[0, 2:]).nonzero()[0])
    tokens[0, [i, i + 1]] = tokens[0, [i + 1, i]]
    labels[0, [i - 1, i]] = labels[0, [i, i - 1]]
    return replace(rows, tokens_BT=tokens, labels_BT=labels)


def rows_swapped(rows: Inputs) -> Inputs:
    return replace(rows, tokens_BT=rows.tokens_BT.flip(0), labels_BT=rows.labels_BT.flip(0))


def labels_unshifted(rows: Inputs) -> Inputs:
    return replace(rows, labels_BT=torch.cat((rows.tokens_BT[:, :-1], rows.labels_BT[:, -1:]), 1))


def without_documents(rows: Inputs) -> Inputs:
    """Inputs as if every row were one document."""
    B, length = rows.tokens_BT.shape
    return replace(rows, cu_seqlens=torch.arange(0, B * length + 1, length, dtype=torch.int32))


def documents_late(rows: Inputs) -> Inputs:
    """Every document that begins inside a row begins one token late."""
    column = rows.cu_seqlens % rows.tokens_BT.shape[1]
    inside = (column > 0) & (column < rows.tokens_BT.shape[1] - 1)
    return replace(rows, cu_seqlens=rows.cu_seqlens + inside)


def last_label_weighed(rows: Inputs) -> Inputs:
    weights = rows.weights_BT.clone()
    weights[:, -1] = 1
    return replace(rows, weights_BT=weights)


@pytest.mark.parametrize(
    "change",
    [
        rolled,
        swapped,
        rows_swapped,
        labels_unshifted,
        without_documents,
        documents_late,
        last_label_weighed,
    ],
)
def test_whatever_rows_are_made_of_wrongly_is_another_order_hash(
    store: Backend, planned: pa.Table, tmp_path: Path, change: Change
) -> None:
    found = recorded(store, tmp_path, change)
    assert len(found) == len(planned)
    assert order_hash(found) != order_hash(planned)
