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
from fmscale.errors import ConfigError
from fmscale.objectives import Inputs, NextToken
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from fmscale.train.inputs import received
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
                record.add(received(batch, change(NextToken().collate(batch))))
    return read_records(paths)


def test_rows_as_the_engine_gets_them_are_those_of_the_plan(store: Backend, planned: pa.Table, tmp_path: Path) -> None:
    found = recorded(store, tmp_path, lambda rows: rows)
    assert found.select(COLUMNS).equals(planned.select(COLUMNS))
    last = [pieces[-1]["tokens"] for pieces in found["pieces"].to_pylist()]
    assert 1 in last, "no row has a document of which it holds only the last label"


def changed(rows: Inputs, **tensors: torch.Tensor) -> Inputs:
    return replace(rows, tensors={**rows.tensors, **tensors})


def rolled(rows: Inputs) -> Inputs:
    return changed(rows, **{name: rows.tensors[name].roll(1, 1) for name in ("tokens", "labels")})


def swapped(rows: Inputs) -> Inputs:
    """Two tokens that differ, in inputs and labels alike."""
    tokens, labels = rows.tensors["tokens"].clone(), rows.tensors["labels"].clone()
    i = 1 + int((tokens[0, 1:-1] != tokens[0, 2:]).nonzero()[0])
    tokens[0, [i, i + 1]] = tokens[0, [i + 1, i]]
    labels[0, [i - 1, i]] = labels[0, [i, i - 1]]
    return changed(rows, tokens=tokens, labels=labels)


def rows_swapped(rows: Inputs) -> Inputs:
    return changed(rows, **{name: rows.tensors[name].flip(0) for name in ("tokens", "labels")})


def labels_unshifted(rows: Inputs) -> Inputs:
    return changed(rows, labels=torch.cat((rows.tensors["tokens"][:, :-1], rows.tensors["labels"][:, -1:]), 1))


def without_documents(rows: Inputs) -> Inputs:
    """Inputs as if every row were one document."""
    return changed(rows, cu_seqlens=rows.bounds)


def documents_late(rows: Inputs) -> Inputs:
    """Every document that begins inside a row begins one token late."""
    cu_seqlens, length = rows.tensors["cu_seqlens"], rows.weights.shape[1]
    column = cu_seqlens % length
    return changed(rows, cu_seqlens=cu_seqlens + ((column > 0) & (column < length - 1)))


def last_label_weighed(rows: Inputs) -> Inputs:
    weights = rows.weights.clone()
    weights[:, -1] = 1
    return replace(rows, weights=weights)


def test_inputs_of_another_kind_are_refused(store: Backend) -> None:
    with open_loader(store, dataset="corpus", sequence_length=T, batch=2) as loader:
        batch = next(loader)
    inputs = replace(NextToken().collate(batch), tensors={"patches": torch.zeros(2)})
    with pytest.raises(ConfigError, match="rows of tokens") as caught:
        received(batch, inputs)
    assert caught.value.found == ["patches"]


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
