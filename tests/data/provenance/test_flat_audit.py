"""The audit, the trace and the expected samples of flat forwards: records alone, and mixed with rows of tokens."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmscale.config import SourceConfig
from fmscale.config.spec import TextSpec
from fmscale.data.flat_loader import FlatLoader
from fmscale.data.forward import RowPiece
from fmscale.data.open import open_flat_loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog, replay
from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import SCHEMA, DeliveryRecord, order_hash, read_records
from fmscale.data.provenance.expected import expected_samples
from fmscale.data.provenance.trace import trace_document, trace_step
from fmscale.data.reading.unit import TokenUnit
from fmscale.data.samples.specs import make_spec
from fmscale.data.views.mask import find_documents, make_mask
from fmscale.errors import DataError
from fmscale.objectives import Inputs, NextToken
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from fmscale.train.compare import compare, read_history
from fmscale.train.inputs import deliver
from tests.data.provenance.test_trace import run
from tests.helpers.record_datasets import add_sizes, record_dataset
from tests.helpers.records import record_id
from tests.helpers.segments import documents, flip, write_commit

TEXT = TextSpec(tokenizer="bytes", too_long="drop")
FORWARD, T, BATCH = 256, 129, 16
RECORDS, FIRST, LONG = 72, 30, 3
BATCHES = BatchSchedule([(0, BATCH)])
MIXTURE = (SourceConfig(dataset="texts", weight=3), SourceConfig(dataset="corpus", weight=1))
ALONE = MIXTURE[:1]
RUNS = {"alone": (ALONE, 2 * RECORDS // BATCH), "mixed": (MIXTURE, 2 * RECORDS * 4 // 3 // BATCH)}
"""Sources of each run, and the steps of two epochs of the records."""
Run = tuple[str, list[Path]]
COLUMNS = ["k", "source", "row", "digest", "pieces"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """Records in two segments, of which some are too long for a forward; and 30 rows of tokens."""
    store = open_store(str(tmp_path_factory.mktemp("flat") / "store"))
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(4, 100, RECORDS - LONG), *[FORWARD + 1] * LONG]
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths]
    # Records of 2 KB, so that a unit has about as many rows as the dataset, and a batch eight.
    table = pa.table({"text": texts, "picture": [rng.bytes(2000) for _ in texts]})
    tables = [table.slice(0, FIRST), table.slice(FIRST)]
    add_sizes(record_dataset(store, "texts", tables), make_spec(TEXT, store, limit=FORWARD), tables)
    write_commit(store, "corpus", {"train": [documents(rng.integers(1, 200, 40).tolist())]})
    return store


def opened(store: Backend, sources: tuple[SourceConfig, ...], run: str | None = None, **options: Any) -> FlatLoader:
    return open_flat_loader(
        store,
        forward_tokens=FORWARD,
        batch=BATCH,
        sources=sources,
        spec=TEXT,
        sequence_length=T,
        seed=3,
        run=run,
        **{"threads": 2, "document_ids": True, **options},
    )


def record(
    path: Path,
    loader: FlatLoader,
    steps: int,
    *,
    state: dict[str, Any] | None = None,
    change: Callable[[Inputs], Inputs] = lambda inputs: inputs,
) -> dict[str, Any]:
    """Record what a model gets below step `steps`. Returns the loader's state behind it."""
    with loader, DeliveryRecord(path) as found:
        if state:
            loader.load_state_dict(state)
        while loader.k < steps * BATCH:
            forward = next(loader)
            deliver(found, forward, change(NextToken().collate(forward)))
        return loader.state_dict()


def record_ranks(store: Backend, name: str, folder: Path, **options: Any) -> list[Path]:
    """Records of two ranks over two epochs."""
    sources, steps = RUNS[name]
    paths = [folder / f"000001-rank{rank:05d}.arrow" for rank in range(2)]
    for rank, path in enumerate(paths):
        record(path, opened(store, sources, name, dp_rank=rank, dp_size=2), steps, **options)
    return paths


@pytest.fixture(scope="module", params=sorted(RUNS))
def run_of(request: pytest.FixtureRequest, store: Backend, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run, and its records."""
    return request.param, record_ranks(store, request.param, tmp_path_factory.mktemp(request.param))


def copied(store: Backend, folder: Path) -> Backend:
    """A copy of the datasets of a local store."""
    place = store.local_path("datasets")
    assert place is not None
    shutil.copytree(place, folder / "copy" / "datasets")
    return open_store(str(folder / "copy"))


def audited(store: Backend, name: str, paths: list[Path]) -> tuple[int, dict[str, Any]]:
    code, output = run(store, "audit", *map(str, paths), "--json", run=name)
    return code, json.loads(output)


def plan_of(store: Backend, name: str) -> Plan:
    plan = replay(Log(store, f"runs/{name}", RUN_KINDS))
    assert plan is not None
    return plan


def rewritten(paths: list[Path], out: Path, change: Callable[[list[dict[str, Any]]], Any]) -> list[Path]:
    rows = read_records(paths).to_pylist()
    rows = change(rows) or rows
    with out.open("wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return [out]


def test_two_epochs_at_two_ranks_pass_and_are_those_of_the_plan(store: Backend, run_of: Run) -> None:
    name, paths = run_of
    code, report = audited(store, name, paths)
    assert (code, report["problems"]) == (0, [])
    samples = RUNS[name][1] * BATCH
    assert (report["rows"], report["left_out"], report["first_k"], report["last_k"]) == (samples, 0, 0, samples - 1)
    delivered = read_records(paths)
    expected = expected_samples(store, plan_of(store, name), 0, samples)
    assert expected.select(COLUMNS).equals(delivered.select(COLUMNS))
    assert order_hash(expected) == order_hash(delivered)
    assert set(delivered["source"].to_pylist()) == set(range(len(RUNS[name][0])))


def test_a_resume_at_another_number_of_ranks_counts_once(store: Backend, run_of: Run, tmp_path: Path) -> None:
    name, whole = run_of
    sources, steps = RUNS[name]
    killed = [tmp_path / f"000001-rank{rank:05d}.arrow" for rank in range(2)]
    for rank, path in enumerate(killed):
        state = record(tmp_path / "x.arrow", opened(store, sources, name, dp_rank=rank, dp_size=2), 5)
        record(path, opened(store, sources, name, dp_rank=rank, dp_size=2), 7)
    resumed = tmp_path / "000002-rank00000.arrow"
    record(resumed, opened(store, sources, name), steps, state=state)
    code, report = audited(store, name, [*killed, resumed])
    assert (code, report["problems"], report["redelivered"]) == (0, [], 2 * BATCH)
    assert report["order_hash"] == audited(store, name, whole)[1]["order_hash"]


def first_record(rows: list[dict[str, Any]], at: int = 0) -> dict[str, Any]:
    return [row for row in rows if row["source"] == 0][at]


def drop(rows: list[dict[str, Any]]) -> None:
    rows.remove(first_record(rows, 2))


def repeat(rows: list[dict[str, Any]]) -> None:
    rows.append(first_record(rows))


def another_record(rows: list[dict[str, Any]]) -> None:
    first_record(rows)["pieces"] = first_record(rows, 1)["pieces"]


def two_records(rows: list[dict[str, Any]]) -> None:
    first_record(rows)["pieces"] += first_record(rows, 1)["pieces"]


def empty(rows: list[dict[str, Any]]) -> None:
    first_record(rows)["pieces"] = []


def another_number(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every delivery of a record becomes a delivery of another record, made as it should be."""
    gone, instead = first_record(rows)["pieces"], first_record(rows, 1)
    content = {key: instead[key] for key in ("row", "digest", "pieces")}
    return [{**row, **content} if row["pieces"] == gone else row for row in rows]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (drop, {"missing_samples"}),
        (repeat, {"duplicate_samples"}),
        (another_record, {"wrong_bytes"}),
        (two_records, {"wrong_bytes"}),
        (empty, {"unexplained"}),
        (another_number, {"tokens_twice", "tokens_missing"}),
    ],
)
def test_every_fault_of_records_is_seen(
    store: Backend, run_of: Run, tmp_path: Path, change: Callable[..., Any], fields: set[str]
) -> None:
    name, paths = run_of
    code, report = audited(store, name, rewritten(paths, tmp_path / "changed.arrow", change))
    assert code == 1
    assert {field for field in fields if report[field]} == fields
    assert report["problems"]


def test_a_row_of_tokens_has_the_documents_that_are_stored(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.arrow"
    record(path, opened(store, MIXTURE, "mixed"), 2)
    assert audited(store, "mixed", [path])[0] == 0

    def joined(rows: list[dict[str, Any]]) -> None:
        pieces = next(row for row in rows if len(row["pieces"]) > 1)["pieces"]
        pieces[0]["tokens"] += pieces.pop(1)["tokens"]

    code, report = audited(store, "mixed", rewritten([path], tmp_path / "changed.arrow", joined))
    assert (code, report["wrong_bytes"]) == (1, 1)

    whole = TokenUnit.pieces

    def cut(unit: TokenUnit, offset: int) -> list[RowPiece]:
        """Pieces of which the first is cut in two, for the sample and the record alike."""
        first, *others = whole(unit, offset)
        end = RowPiece(first.document, first.offset + 1, first.start + 1, first.tokens - 1)
        return [RowPiece(first.document, first.offset, first.start, 1), end, *others]

    monkeypatch.setattr(TokenUnit, "pieces", cut)
    record(path, opened(store, MIXTURE, "mixed"), 2)
    code, report = audited(store, "mixed", [path])
    assert (code, report["wrong_bytes"]) == (1, read_records([path])["source"].to_pylist().count(1))


def wrong_token(inputs: Inputs) -> Inputs:
    tokens = inputs.tensors["tokens"].clone()
    tokens[0, 0] += 1
    return dataclasses.replace(inputs, tensors={**inputs.tensors, "tokens": tokens})


def wrong_weight(inputs: Inputs) -> Inputs:
    weights = inputs.weights.clone()
    weights[0, 0] = 0.5
    return dataclasses.replace(inputs, weights=weights)


def without_documents(inputs: Inputs) -> Inputs:
    """Attention over the whole forward, with positions as they were."""
    ends = inputs.tensors["cu_seqlens"][[0, -1]]
    return dataclasses.replace(inputs, tensors={**inputs.tensors, "cu_seqlens": ends})


@pytest.mark.parametrize("change", [wrong_token, wrong_weight, without_documents])
def test_what_a_model_gets_wrongly_is_seen(
    store: Backend, run_of: Run, tmp_path: Path, change: Callable[[Inputs], Inputs]
) -> None:
    name, _ = run_of
    path = tmp_path / "1.arrow"
    record(path, opened(store, RUNS[name][0], name), 1, change=change)
    code, report = audited(store, name, [path])
    assert code == 1
    assert report["wrong_bytes"] > 0
    assert len(report["problems"]) == 1


def test_masked_records_are_not_missed_and_must_not_come(store: Backend, run_of: Run, tmp_path: Path) -> None:
    name, paths = run_of
    sources, steps = RUNS[name]
    dataset = open_dataset(store, "texts")
    out = {record_id(number) for number in (3, 4, 5, 1_000_010)}
    masks = (make_mask(dataset, find_documents(dataset, ids=out)),)
    masked = (dataclasses.replace(sources[0], masks=masks), *sources[1:])
    path = tmp_path / "1.arrow"
    record(path, opened(store, masked, f"{name}-masked"), steps)
    code, report = audited(store, f"{name}-masked", [path])
    assert (code, report["problems"]) == (0, [])
    came = {piece["document"] for pieces in read_records([path])["pieces"].to_pylist() for piece in pieces}
    assert not came & out
    code, report = audited(store, f"{name}-masked", paths)
    assert code == 1
    assert report["tokens_masked"] == 2 * len(out)
    assert "masked documents" in " ".join(report["problems"])


def test_samples_without_content_must_have_rows_that_the_run_names(tmp_path: Path, store: Backend) -> None:
    damaged = copied(store, tmp_path)
    [_, key] = sorted(i.key for i in damaged.list_objects("datasets/texts/segments") if "/records/0" in i.key)
    flip(damaged, key, 600)
    (tmp_path / "records").mkdir()
    paths = record_ranks(damaged, "alone", tmp_path / "records")
    code, report = audited(damaged, "alone", paths)
    plan = plan_of(damaged, "alone")
    lost = plan.lost(plan.samples(np.arange(RUNS["alone"][1] * BATCH, dtype=np.uint64)))
    assert (code, report["problems"], report["unexplained"]) == (0, [], 0)
    assert report["left_out"] == lost.sum() > 0
    delivered = read_records(paths)
    expected = expected_samples(damaged, plan, 0, len(delivered))
    assert expected.select(COLUMNS).equals(delivered.select(COLUMNS))

    # A run whose log names none of these rows.
    stage = plan.stages[0]
    OrderLog(Log(damaged, "runs/clean", RUN_KINDS)).start(stage.sources, stage.excluded)
    code, report = audited(damaged, "clean", paths)
    assert (code, report["left_out"], report["unexplained"]) == (1, 0, lost.sum())


def test_the_trace_agrees_with_the_deliveries(store: Backend, run_of: Run) -> None:
    name, paths = run_of
    plan, delivered = plan_of(store, name), read_records(paths).to_pylist()
    names = ["texts", "corpus"]
    for step in range(4):
        traced = [(t.k, t.row, t.dataset, t.document) for t in trace_step(store, plan, BATCHES, step)]
        assert traced == [
            (row["k"], row["row"], names[row["source"]], piece["document"].hex())
            for row in delivered[step * BATCH : (step + 1) * BATCH]
            for piece in row["pieces"]
        ]
    chosen = {piece["document"].hex() for row in delivered[:6] for piece in row["pieces"]}
    for document in chosen:
        found = trace_document(store, plan, BATCHES, document, steps=RUNS[name][1])
        held = [row["k"] for row in delivered if any(piece["document"].hex() == document for piece in row["pieces"])]
        assert [t.k for t in found] == held
    long = trace_document(store, plan, BATCHES, record_id(1_000_000 + RECORDS - FIRST - 1).hex(), steps=RUNS[name][1])
    assert long == []


def test_runs_with_flat_forwards_are_compared(store: Backend, run_of: Run, tmp_path: Path) -> None:
    name, paths = run_of
    sources, steps = RUNS[name]
    runs = [tmp_path / folder for folder in ("ranks", "alone", "wrong", "empty")]
    for folder in runs:
        (folder / "delivery").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for path in paths:
        shutil.copy(path, runs[0] / "delivery")
    delivered = [folder / "delivery" / "000001-rank00000.arrow" for folder in runs[1:]]
    record(delivered[0], opened(store, sources, name), steps)
    record(delivered[1], opened(store, sources, name), steps, change=wrong_token)
    rewritten(paths, delivered[2], empty)
    first, *others = map(read_history, runs)
    equal, wrong, left_out = (compare(first, other) for other in others)
    assert equal.exact
    assert equal.samples == steps * BATCH
    assert set(wrong.parts) == {"delivered digest"}
    assert set(left_out.parts) == {"delivered pieces"}
    assert left_out.parts["delivered pieces"].b == "no content"


def test_a_record_of_deliveries_needs_ids(store: Backend, tmp_path: Path) -> None:
    loader = opened(store, ALONE, document_ids=False)
    with loader, DeliveryRecord(tmp_path / "1.arrow") as found, pytest.raises(DataError, match="needs the ids"):
        found.add(next(loader))
