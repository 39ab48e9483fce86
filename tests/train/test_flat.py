"""Training on samples of any length in flat forwards: records alone, and mixed with rows of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmscale.config.spec import TextSpec
from fmscale.data.samples.specs import make_spec
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.ranks import run_ranks
from tests.helpers.record_datasets import add_sizes, record_dataset
from tests.train.runs import events_of, make_corpus, steps_of, train_here, write_config

FORWARD = 512
COMMON = (
    "train.record_delivery=false",
    "train.steps=4",
    f"batch={{global_batch: 16, forward_tokens: {FORWARD}, micro_batch: null}}",
    "model.max_seq_len=256",
    "model.dropout=0",
    "evaluation.sets=[{dataset: notes, split: train, rows: 20, spec: {field: note, tokenizer: bytes, too_long: drop}}]",
)
RECORDS = "data.sources=[{dataset: notes}]"
MIXED = "data.sources=[{dataset: notes, weight: 2, spec: {field: note, too_long: drop}}, {dataset: prose, weight: 1}]"
SPEC = "data.spec={kind: text, field: note, tokenizer: bytes, too_long: cut, max_tokens: 200}"


def notes(count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(3), np.log(280), count)).astype(int)
    return pa.table({"n": lengths, "note": ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths]})


def make_notes(store: Backend) -> None:
    tables = [notes(120, 0), notes(60, 1)]
    dataset = record_dataset(store, "notes", tables)
    add_sizes(dataset, make_spec(TextSpec(field="note", tokenizer="bytes"), store, limit=FORWARD), tables)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = make_corpus(tmp_path_factory.mktemp("corpus"))
    make_notes(open_store(url))
    return url


def losses(store: str, folder: Path, name: str, size: int, *overrides: str) -> list[dict[str, Any]]:
    path = write_config(folder, store)
    run_ranks(train_here, size, str(path), (*COMMON, *overrides, f"train.run={name}"), timeout=120)
    steps = steps_of(folder / name)
    return [steps[step] for step in sorted(steps)]


@pytest.mark.parametrize(("name", "data"), [("alone", (RECORDS, SPEC)), ("mixed", (MIXED,))])
def test_records_train_alone_and_mixed_with_the_same_losses_at_any_size(
    store: str, tmp_path: Path, name: str, data: tuple[str, ...]
) -> None:
    alone = losses(store, tmp_path, f"{name}1", 1, *data, "train.zero_stage=0")
    three = losses(store, tmp_path, f"{name}3", 3, *data, "train.zero_stage=3")
    assert len(alone) == 4
    assert [step["tokens"] for step in alone] == [step["tokens"] for step in three]
    assert [step["loss"] for step in alone] == pytest.approx([step["loss"] for step in three], rel=1e-5)
    assert alone[-1]["loss"] < alone[0]["loss"]
    told = [events_of(tmp_path / f"{name}{size}", "evaluation") for size in (1, 3)]
    assert [len(events) for events in told] == [1, 1]
    assert told[0][0]["heldout/notes"] == pytest.approx(told[1][0]["heldout/notes"], rel=1e-5)
