"""A run of `train.tokens` trains these tokens, and its rate goes on, where its jobs have different batches."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmscale.config import BatchShape, Config, DataConfig, ScheduleConfig, SourceConfig, TrainConfig, load_config
from fmscale.errors import ConfigError
from fmscale.train.length import RunLength, run_length
from fmscale.train.preflight.preflight import check_run
from fmscale.train.schedule import learning_rate
from tests.helpers.deepspeed_numbers import restart_numbers
from tests.helpers.ranks import run_ranks
from tests.train.runs import T, make_corpus, steps_of, train_here, write_config

DATA = DataConfig(sources=(SourceConfig(dataset="a"),), sequence_length=10)
CONFIG = Config(data=DATA, train=TrainConfig(tokens=10_000))


def shape(rows: int, forward_tokens: int | None = None) -> BatchShape:
    return BatchShape(global_batch=rows, micro_batch=1, accumulation=rows, dp_size=1, forward_tokens=forward_tokens)


def recorded(length: RunLength, step: int) -> dict[str, Any]:
    return {"step": step, "tokens": length.tokens(step), "first_step_tokens": length.unit}


def test_the_tokens_left_are_trained_in_steps_of_the_new_batch() -> None:
    begin = run_length(CONFIG, shape(10))
    assert (begin.steps, begin.tokens(begin.steps)) == (100, 10_000)
    assert [begin.place(step) for step in range(100)] == [(step, 100) for step in range(100)], "exactly, by no rounding"
    double = run_length(CONFIG, shape(20), recorded(begin, 60))
    assert (double.steps, double.tokens(80)) == (80, 10_000)
    half = run_length(CONFIG, shape(5), recorded(double, 70))
    assert (half.steps, half.tokens(half.steps)) == (70 + 40, 10_000)
    odd = run_length(CONFIG, shape(7), recorded(begin, 60))
    assert (odd.steps, odd.tokens(odd.steps)) == (60 + 58, 6000 + 58 * 70), "rounded up to whole steps"
    done = run_length(CONFIG, shape(7), {"step": 150, "tokens": 12_000, "first_step_tokens": 100})
    assert done.steps == 150


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_the_rate_goes_on_by_tokens(kind: Any) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=70, decay_fraction=0.2, final_fraction=0.1)
    begin = run_length(CONFIG, shape(10))
    whole = [learning_rate(schedule, 1.0, *begin.place(step)) for step in range(100)]
    double = run_length(CONFIG, shape(20), recorded(begin, 60))
    rest = [learning_rate(schedule, 1.0, *double.place(step)) for step in range(60, 80)]
    assert rest == whole[61::2], "a step of two batches has the rate of the second"
    assert rest[-1] == pytest.approx(0.1, abs=0.01)
    fixed = Config(data=DATA, train=TrainConfig(steps=100))
    assert run_length(fixed, shape(20), recorded(begin, 60)).place(60) == (60, 100), "train.steps counts steps"


def test_a_checkpoint_of_an_earlier_version_says_its_tokens_by_its_samples() -> None:
    batch = {"global_batch": None, "micro_batch": 5, "accumulation": 2, "uneven": "refuse"}
    config = {"batch": batch, "data": {"sequence_length": 10}}
    meta = {"step": 60, "loader": {"k": 600}, "world_size": 1, "config": config}
    assert run_length(CONFIG, shape(20), meta) == run_length(
        CONFIG, shape(20), recorded(run_length(CONFIG, shape(10)), 60)
    )
    config["batch"] = {"global_batch": 10, "forward_tokens": 64}
    with pytest.raises(ConfigError, match=r"train.tokens: samples have lengths of their own.* after the checkpoint"):
        run_length(CONFIG, shape(20), meta)


def stopped(rank: int, size: int, path: str, overrides: tuple[str, ...], at: int) -> dict[str, Any]:
    """Train as this rank until a stop signal, which comes after step `at` when the facts of the next step are sent."""
    from fmscale.train.run import run_training

    def show(record: Mapping[str, Any]) -> None:
        if record["step"] == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    restart_numbers()
    return run_training(load_config(path, overrides), show=show, event=lambda record: None).to_json()


def test_a_run_stopped_on_one_rank_and_resumed_on_two_trains_all_its_tokens(tmp_path: Path) -> None:
    path = write_config(tmp_path, make_corpus(tmp_path))
    batch = ("batch={micro_batch: 3, accumulation: 2}", "train.steps=null", f"train.tokens={12 * 6 * T}")
    schedule = "schedule={kind: wsd, warmup_steps: 3, decay_fraction: 0.5, final_fraction: 0}"
    [first] = run_ranks(stopped, 1, str(path), (*batch, schedule), 3, timeout=120)
    assert (first["last_step"], first["stop"]) == (4, "SIGUSR1")
    planned = check_run(load_config(path, (*batch, schedule)), 2)
    assert (planned.forecast.steps, planned.forecast.tokens) == (4 + 4, 12 * 6 * T)
    second = run_ranks(train_here, 2, str(path), (*batch, schedule), timeout=120)[0]
    assert (second["first_step"], second["last_step"], second["complete"]) == (4, 8, True)
    steps = steps_of(tmp_path / "run")
    assert [steps[step]["lr"] / 0.003 for step in sorted(steps)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 1, 4 / 6, 2 / 6, 0]
    )
    [resumed] = [event for event in second["events"] if event["event"] == "resumed"]
    [opened] = [event for event in second["events"] if event["event"] == "opened"]
    assert (opened["steps"], resumed["steps"]) == (None, 8)
    assert {record["steps"] for record in second["shown"]} == {8}
