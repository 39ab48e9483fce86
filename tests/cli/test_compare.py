"""`fmscale compare` on runs' folders: equal runs, first differences, and repeated steps."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.provenance.delivery import SCHEMA
from fmscale.runtime.sinks.jsonl import JsonlSink
from fmscale.train.compare import first_unequal

Changes = dict[int, dict[str, Any]]


def write_run(folder: Path, steps: range = range(1, 9), changes: Changes | None = None) -> Path:
    """Metrics like the trainer's, with speeds of this run alone."""
    sink = JsonlSink(folder / "metrics.jsonl")
    for step in steps:
        record = {"step": step, "loss": 5.0 / step, "tokens": 100, "lr": 1e-3, "grad_norm": 1.0 / step}
        speeds = dict.fromkeys(("seconds", "pairs_per_second", "tokens_per_second_per_gpu"), time.perf_counter())
        sink.write({**record, "applied": True, **speeds, **(changes or {}).get(step, {})})
    sink.write({"event": "checkpoint", "step": steps.stop - 1, "bytes": 12})
    sink.close()
    return folder


def write_delivery(folder: Path, name: str, samples: range, wrong: int = -1, batch: int = 4) -> None:
    path = folder / "delivery" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "k": k,
            "step": k // batch,
            "source": 0,
            "row": 7 * k,
            "digest": bytes(15) + bytes([k + (k == wrong)]),
            "pieces": [{"document": bytes(16), "offset": k, "start": 0, "tokens": 8}],
        }
        for k in samples
    ]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def compare(*words: str | Path) -> tuple[int, Any]:
    result = CliRunner().invoke(build_app(), ["compare", *map(str, words), "--json"])
    assert result.exit_code in (0, 1), result.stderr
    return result.exit_code, json.loads(result.stdout)


def test_equal_runs_agree_exactly_although_their_speeds_differ(tmp_path: Path) -> None:
    status, found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert (status, found["same"], found["exact"], found["steps"]) == (0, True, True, 8)


@pytest.mark.parametrize("metric", ["loss", "grad_norm", "tokens", "applied"])
def test_the_first_step_that_differs_is_named_with_metric_and_values(tmp_path: Path, metric: str) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", changes={5: {metric: 0.5}, 6: {metric: 0.25}})
    status, found = compare(a, b)
    assert status == 1
    expected = {"loss": 1.0, "grad_norm": 0.2, "tokens": 100, "applied": True}[metric]
    assert found["first"] == {"step": 5, "what": metric, "a": expected, "b": 0.5}


def test_a_tolerance_is_relative_and_covers_no_counts(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", changes={3: {"loss": 5.0 / 3 * 1.001}})
    assert compare(a, b, "--tolerance", "2e-3")[1]["exact"] is False
    assert compare(a, b, "--tolerance", "2e-3")[0] == 0
    assert compare(a, b, "--tolerance", "5e-4")[0] == 1
    fewer = write_run(tmp_path / "c", changes={3: {"tokens": 99}})
    assert compare(a, fewer, "--tolerance", "0.5")[0] == 1


def test_a_loss_that_is_not_finite_is_near_nothing_but_itself(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, changes={2: {"loss": float("nan")}}) for n in "ab"]
    assert compare(*runs)[0] == 0
    assert compare(runs[0], write_run(tmp_path / "c"), "--tolerance", "10")[0] == 1


def test_of_a_step_that_was_taken_again_the_later_record_counts(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", range(1, 6), changes={4: {"loss": 9.0}})
    write_run(b, range(4, 9))
    status, found = compare(a, b)
    assert status == 0
    assert found["notes"] == [
        "the second run took 2 steps again after a resume; the later record counts",
        "neither run has delivery records (train.record_delivery), so what was delivered is not compared",
    ]


def test_a_shorter_run_differs_unless_only_common_steps_are_asked_for(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", range(1, 5))]
    status, found = compare(*runs)
    assert (status, found["only"]) == (1, {"a_steps": "5-8"})
    assert compare(*runs, "--common")[0] == 0


def test_held_out_losses_are_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / n) for n in "ab"]
    for folder, loss in zip(folders, (2.0, 2.5), strict=True):
        sink = JsonlSink(folder / "metrics.jsonl")
        sink.write({"event": "evaluation", "step": 8, "heldout/docs": loss})
        sink.close()
    assert compare(*folders)[1]["first"] == {"step": 8, "what": "heldout/docs", "a": 2.0, "b": 2.5}


def test_delivered_samples_are_compared_however_ranks_shared_them(tmp_path: Path) -> None:
    a, b, c = (write_run(tmp_path / n) for n in "abc")
    write_delivery(a, "1-rank0.arrow", range(32))
    for rank in range(2):
        write_delivery(b, f"1-rank{rank}.arrow", range(rank, 20, 2))
    write_delivery(b, "2-rank0.arrow", range(16, 32))
    write_delivery(c, "1-rank0.arrow", range(32), wrong=21)
    status, found = compare(a, b)
    assert (status, found["samples"]) == (0, 32)
    assert len(set(found["order_hashes"])) == 1
    assert "delivered 4 samples again" in found["notes"][0]
    status, found = compare(a, c)
    assert status == 1
    # Sample 21 is in step 5 counted from 0, the sixth.
    assert found["first"]["what"] == "digest of sample 21"
    assert found["first"]["step"] == 6
    assert len(set(found["order_hashes"])) == 2


def test_samples_of_one_run_alone_are_named(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n) for n in "ab")
    write_delivery(a, "1-rank0.arrow", range(32))
    write_delivery(b, "1-rank0.arrow", range(28))
    assert compare(a, b)[1]["only"] == {"a_samples": "28-31"}


def test_a_run_without_delivery_records_is_compared_by_its_metrics_and_that_is_said(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n) for n in "ab")
    write_delivery(a, "1-rank0.arrow", range(32))
    status, found = compare(a, b)
    assert (status, found["samples"]) == (0, None)
    assert found["notes"] == [
        "the second run has no delivery records (train.record_delivery), so what was delivered is not compared"
    ]


@pytest.mark.parametrize("at", [0, 1, 6, 7])
def test_first_unequal_finds_every_place(at: int) -> None:
    rows = [[{"x": i}] for i in range(8)]
    changed = [*rows[:at], [{"x": -1}], *rows[at + 1 :]]
    columns = [pa.chunked_array([pa.array(r[:3]), pa.array(r[3:])]) for r in (rows, changed)]
    assert first_unequal(*columns) == at
    assert first_unequal(columns[0], columns[0]) is None


def test_the_table_says_where_the_runs_part(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", changes={5: {"loss": 0.5}})
    result = CliRunner().invoke(build_app(), ["compare", str(a), str(b)])
    assert result.exit_code == 1
    assert "the runs differ from step 5 on: loss 1.0 and 0.5" in result.stdout
    assert "parts at step" in result.stdout


def test_what_is_no_run_and_runs_without_a_common_step_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    result = CliRunner().invoke(build_app(), ["compare", str(a), str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "no metrics of a run here" in result.stderr
    later = write_run(tmp_path / "b", range(20, 24))
    result = CliRunner().invoke(build_app(), ["compare", str(a), str(later)])
    assert result.exit_code == 2
    assert "no step in common" in result.stderr
