"""Output of a run: facts before anything slow, phases, steps and events, for a terminal and for a pipe."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmscale.cli.train_screen import RunScreen, last_rate
from fmscale.config import load_config
from fmscale.runtime.world import World

CONFIG = """
store: {url: nowhere}
data: {sequence_length: 64, sources: [{dataset: docs}]}
batch: {global_batch: 8, micro_batch: 2}
train: {run: demo, folder: FOLDER, steps: 100, zero_stage: 1}
"""
OPENED = {
    "event": "opened",
    "device": "cpu",
    "parameters": 1_115_264,
    "vocab_size": 2048,
    "steps": 100,
    "tokens_per_step": 512,
    "sources": [{"label": "docs", "tokens": 445_582, "left_out": 582, "epochs": 0.1149}],
}
SAVED = {"event": "checkpoint", "step": 50, "state": "acknowledged", "entry": 2, "durable_seconds": 0.19,
         "bytes_written": 6_691_584}  # fmt: skip


class Terminal(io.StringIO):
    """Claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return path


def shown(path: Path, stream: io.StringIO, *overrides: str) -> str:
    """Output of a run of two ranks that resumes at step 40, with a start in 0.1, 2 and 3 seconds."""
    times = iter([0.0, 0.0, 0.1, 0.1, 2.1, 2.1, 5.1, 5.1, 6.1, 15.1, 60.0])
    screen = RunScreen(load_config(path, overrides), World(world_size=2), stream=stream, clock=lambda: next(times))
    screen.announce()
    screen.phase("meeting")
    screen.phase("opening the data")
    screen.event(OPENED)
    screen.phase("restore")
    screen.event({"event": "resumed", "step": 40, "steps": 100, "run": "demo", "passed_over": []})
    screen.phase("train")
    for step in (41, 50):
        screen.step({"step": step, "steps": 100, "loss": 2.5, "tokens_per_second": 81_200.4, "lr": 0.1})
    screen.event(SAVED)
    screen.end(100, "")
    return stream.getvalue()


def test_a_pipe_gets_whole_lines_without_styles(path: Path, tmp_path: Path) -> None:
    assert shown(path, io.StringIO()).splitlines() == [
        f"run     demo, in {tmp_path}/demo",
        "store   nowhere",
        "ranks   2, ZeRO stage 1",
        "batch   8 rows of 64 = 512 tokens a step",
        "steps   100, 51,200 tokens",
        "  opening the data 2.0 s",
        "device  cpu",
        "model   1,115,264 parameters, vocabulary 2,048",
        "data    docs: 445,582 tokens (582 in no row), 0.11 epochs in all",
        "  restore 3.0 s",
        "resumed  step 40  steps 100  run demo",
        "time    told after the first step",
        "step 41/100  loss 2.5  81,200 tokens/s  ETA 59 s",
        "step 50/100  loss 2.5  81,200 tokens/s  ETA 50 s",
        "checkpoint  step 50  state acknowledged  durable 0.190 s  written 6.4 MiB",
        "run demo: step 100, complete, after 60 s",
    ]


def test_a_terminal_sees_the_phase_that_runs_and_events_dim(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = shown(path, Terminal())
    assert "\x1b[2m  meeting …\x1b[0m\r" in text
    assert "\x1b[2mresumed  step 40  steps 100  run demo\x1b[0m\n" in text
    assert "\nstep 41/100" in text
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(path, Terminal())
    assert plain == text.replace("\x1b[2m", "").replace("\x1b[0m", "")
    monkeypatch.setenv("TERM", "dumb")
    assert shown(path, Terminal()) == shown(path, io.StringIO())


def test_a_length_in_tokens_is_shown_in_steps_once_the_data_is_open(path: Path) -> None:
    lines = shown(path, io.StringIO(), "train.steps=null", "train.tokens=51000").splitlines()
    assert lines.index("steps   100, 51,200 tokens") == lines.index("device  cpu") + 2


def test_the_steps_of_a_resumed_run_of_tokens_are_known_once_it_is_restored(path: Path, tmp_path: Path) -> None:
    record_speeds(tmp_path / "demo" / "metrics.jsonl", [(1024.0, 1)] * 50)
    stream = io.StringIO()
    screen = RunScreen(load_config(path, ("train.steps=null", "train.tokens=51000")), World(), stream=stream)
    screen.event({**OPENED, "steps": None})
    screen.event({"event": "resumed", "step": 40, "steps": 70})
    screen.phase("train")
    assert "steps   " not in stream.getvalue()
    assert stream.getvalue().endswith("time    about 15 s at the 1,024 tokens/s of its last steps\n")


def test_a_batch_that_does_not_come_out_is_left_to_the_run(path: Path) -> None:
    stream = io.StringIO()
    RunScreen(load_config(path, ("batch.micro_batch=3",)), World(), stream=stream).announce()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["run", "store", "ranks"]


def record_speeds(path: Path, rows: list[tuple[float, int]]) -> None:
    records: list[dict[str, Any]] = [
        {"step": step, "tokens_per_second": speed, "tokens_per_second_per_gpu": speed / world}
        for step, (speed, world) in enumerate(rows, start=1)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in [*records, {"event": "resumed", "step": 9}]))


def test_a_resumed_run_is_expected_to_go_on_at_its_own_speed(path: Path, tmp_path: Path) -> None:
    """60 steps of 512 tokens at 1,024 tokens/s of two ranks; the speed of one rank does not apply to two."""
    metrics = tmp_path / "demo" / "metrics.jsonl"
    record_speeds(metrics, [(1.0, 2)] * 40 + [(1024.0, 2)] * 50 + [(700.0, 1)] * 3)
    assert "time    about 30 s at the 1,024 tokens/s of its last steps\n" in shown(path, io.StringIO())
    record_speeds(metrics, [(700.0, 1)] * 60)
    assert "time    told after the first step\n" in shown(path, io.StringIO())
    assert last_rate(tmp_path / "nothing.jsonl", 2) is None


def test_steps_of_flat_forwards_have_no_fixed_number_of_tokens(path: Path, tmp_path: Path) -> None:
    """Without a number of steps the run is refused once the ranks have met, with a remedy."""
    record_speeds(tmp_path / "demo" / "metrics.jsonl", [(1024.0, 1)] * 50)
    for steps in ("null", "100"):
        stream = io.StringIO()
        overrides = ("batch.micro_batch=null", "batch.forward_tokens=64", f"train.steps={steps}")
        screen = RunScreen(load_config(path, overrides), World(), stream=stream)
        screen.announce()
        lines = stream.getvalue().splitlines()
        assert "batch   8 samples in forwards of 64 tokens or less" in lines
        assert ("steps   100" in lines) == (steps == "100")
    screen.event({**OPENED, "tokens_per_step": None})
    screen.event({"event": "resumed", "step": 40, "steps": 100})
    screen.phase("train")
    assert stream.getvalue().endswith("time    told after the first step\n")


def test_facts_are_told_before_the_ranks_meet_and_before_torch_is_loaded(path: Path, tmp_path: Path) -> None:
    """Rank 0 of two, whose other rank never comes, on a terminal."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    environment |= {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TERM": "xterm"}
    # Whatever imports torch ends there, and a read of a terminal without a writer raises.
    (tmp_path / "torch.py").write_text("raise SystemExit\n")
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("fmscale")), "train", str(path)]
    process = subprocess.Popen(command, stderr=theirs, env={**environment, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    os.close(theirs)
    try:
        text = ""
        while "loading the libraries" not in text:
            text += os.read(ours, 4096).decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert [line.split()[0] for line in text.splitlines()[:5]] == ["run", "store", "ranks", "batch", "steps"]
    assert "ranks   2, ZeRO stage 1" in text
    assert "\x1b[2m  loading the libraries" in text
