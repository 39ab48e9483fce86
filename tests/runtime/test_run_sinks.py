"""The sinks of a run together: each fails alone, none holds a step, and a resumed run goes on in each."""

import logging
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fmscale.config import Config, DataConfig, MetricsConfig, SourceConfig
from fmscale.config.metrics import ConsoleConfig, JsonlConfig, MlflowConfig, TensorBoardConfig, WandbConfig
from fmscale.errors import ConfigError
from fmscale.runtime.sinks import run_sinks
from fmscale.runtime.sinks.jsonl import JsonlSink, read_jsonl
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo, numbers
from fmscale.runtime.sinks.run_sinks import PACKAGES, RunSinks, check_sinks
from tests.helpers.own import Kept, Nothing

EVENT = {"time": 99.5, "event": "evaluation", "step": 2, "heldout/docs": 1.5, "seconds": 2, "sets": ["docs"]}


def record(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {"time": 100.0 + step, "step": step, "loss": loss, "applied": True, "note": "x"}


def info(folder: Path) -> RunInfo:
    return RunInfo(name="demo", store="file:/store", folder=folder, config={"train": {"steps": 4}})


def job(folder: Path, sinks: tuple[Any, ...], first_step: int, steps: range, outcome: Ending = "complete") -> None:
    """A job of a run: steps, an evaluation after the second, which comes before the records of its flush."""
    opened = RunSinks(JsonlSink(folder / "metrics.jsonl"), sinks, info(folder))
    opened.put("event", {"time": 99.0, "event": "resumed", "step": first_step})
    opened.open(first_step)
    opened.put("event", EVENT)
    for step in steps:
        opened.put("step", record(step, loss=step + first_step / 10))
    opened.close(outcome)


def test_a_sink_gets_all_records_in_order_and_the_outcome(tmp_path: Path) -> None:
    kept = Kept(path=str(tmp_path / "calls"))
    job(tmp_path, (JsonlConfig(), ConsoleConfig(), kept), 0, range(1, 3), "stopped")
    assert kept.calls == [
        ("open", {"name": "demo", "first_step": 0, "steps": 4}),
        ("event", {"time": 99.0, "event": "resumed", "step": 0}),
        ("event", EVENT),
        ("step", record(1, loss=1.0)),
        ("step", record(2, loss=2.0)),
        ("close", "stopped"),
    ]
    assert [(r["time"], r["step"]) for r in read_jsonl(tmp_path / "metrics.jsonl")] == [
        (99.0, 0), (99.5, 2), (101.0, 1), (102.0, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [("step", "event", "close"), ("open",)])
def test_a_sink_that_fails_is_told_once_and_the_others_get_each_record(
    tmp_path: Path, fails: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = (Kept(path=str(tmp_path / name), fails=fails if name == "bad" else ()) for name in ("bad", "good"))
    with caplog.at_level(logging.WARNING):
        job(tmp_path, (JsonlConfig(), bad, good), 0, range(1, 4))
    [message] = caplog.messages
    assert message.startswith("the sink tests.helpers.own:Kept fails: OSError: no ")
    assert "Training goes on" in message
    assert "hunter2" not in message
    assert [method for method, _ in good.calls] == ["open", "event", "event", "step", "step", "step", "close"]
    assert [method for method, _ in bad.calls] == (
        ["open"] if fails == ("open",) else [method for method, _ in good.calls]
    )
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 5


@dataclass(frozen=True)
class Stuck:
    """A sink whose service does not answer."""

    answer: Event

    def open(self, run: RunInfo) -> "Stuck":
        return self

    def step(self, record: Record) -> None:
        self.answer.wait()

    event = step

    def close(self, outcome: Ending) -> None: ...


def test_a_sink_that_does_not_answer_holds_neither_a_step_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_sinks, "PENDING", 3)
    monkeypatch.setattr(run_sinks, "CLOSE_SECONDS", 0.0)
    answer = Event()
    with caplog.at_level(logging.WARNING):
        job(tmp_path, (JsonlConfig(), Stuck(answer)), 0, range(1, 9))
    answer.set()
    [message] = caplog.messages
    assert "it takes records more slowly than they come, and 3 wait" in message
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 10


def test_names_of_numbers() -> None:
    assert numbers(record(3)) == {"loss": 1.0, "applied": 1.0}
    assert numbers(EVENT) == {"heldout/docs": 1.5, "evaluation/seconds": 2.0}


def test_a_package_that_is_not_installed_is_told_before_the_run() -> None:
    ours = {"tensorboard": TensorBoardConfig(), "wandb": WandbConfig(), "mlflow": MlflowConfig()}
    assert ours.keys() == PACKAGES.keys()
    sink: Any
    for kind, sink in ours.items():
        config = Config(
            data=DataConfig(sources=(SourceConfig(dataset="docs"),)), metrics=MetricsConfig(sinks=(JsonlConfig(), sink))
        )
        if find_spec(kind):
            check_sinks(config)
            continue
        with pytest.raises(ConfigError, match=r"metrics\.sinks\.1 needs a package that is not installed") as caught:
            check_sinks(config)
        assert (caught.value.found, caught.value.remedy) == (kind, f"pip install 'fmscale[{PACKAGES[kind][0]}]'")
    own = MetricsConfig(sinks=(JsonlConfig(), Nothing()))
    with pytest.raises(ConfigError, match=r"metrics\.sinks\.1 names a class without `open`"):
        check_sinks(Config(data=DataConfig(sources=(SourceConfig(dataset="docs"),)), metrics=own))


def test_a_list_without_the_file_and_a_password_are_refused() -> None:
    with pytest.raises(ConfigError, match="lacks the sink jsonl") as caught:
        MetricsConfig(sinks=(ConsoleConfig(),))
    assert "Add {kind: jsonl}" in caught.value.remedy
    with pytest.raises(ConfigError, match="tracking_uri has a password") as caught:
        MlflowConfig(tracking_uri="https://me:secret@host/path")
    assert "secret" not in str(caught.value)


def test_tensorboard_shows_a_resumed_run_as_one_curve_with_the_steps_own_times(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = (JsonlConfig(), TensorBoardConfig())
    job(tmp_path, sinks, 0, range(1, 6), "failed")
    job(tmp_path, sinks, 3, range(4, 8))
    shown = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    loss = shown.Scalars("loss")
    assert [(e.step, e.wall_time) for e in loss] == [(step, 100.0 + step) for step in range(1, 8)]
    assert [e.value for e in loss] == pytest.approx([1.0, 2.0, 3.0, 4.3, 5.3, 6.3, 7.3])
    assert shown.Scalars("heldout/docs")[0].step == 2


def test_wandb_offline_goes_on_in_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    sinks = (JsonlConfig(), WandbConfig(mode="offline", project="tests"))
    job(tmp_path, sinks, 0, range(1, 4), "stopped")
    job(tmp_path, sinks, 2, range(3, 6))
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    assert all(list(folder.glob("run-*.wandb")) for folder in folders)


def test_mlflow_goes_on_in_the_same_run_and_logs_each_step_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sinks = (JsonlConfig(), MlflowConfig(tracking_uri=uri, experiment="tests"))
    job(tmp_path, sinks, 0, range(1, 6), "failed")
    job(tmp_path, sinks, 3, range(4, 8))
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run((tmp_path / "mlflow_run_id").read_text().strip())
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    history = sorted((m.step, m.timestamp) for m in client.get_metric_history(run.info.run_id, "loss"))
    assert history == [(step, 100_000 + step * 1000) for step in range(1, 8)]
    assert not math.isnan(run.data.metrics["heldout/docs"])
