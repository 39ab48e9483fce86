"""Quickstart with real ranks: as `make quickstart` runs it, but killed half-way and run again."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.config import load_config
from fmscale.quickstart.results import claims
from fmscale.quickstart.settings import choose
from fmscale.quickstart.training import saved_step
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.train.preflight.preflight import check_run

ROOT = Path(__file__).parents[1]
KEYS = {
    "loss_first",
    "loss_last",
    "heldout_bits_per_byte",
    "unbroken",
    "primed_zstd_bits_per_byte",
    "gzip_bits_per_byte",
    "xz_bits_per_byte",
    "tokens_per_second",
    "data_stall_fraction",
    "ckpt_blocking_seconds_max",
    "order_hash_planned",
    "order_hash_delivered",
    "world_sizes",
    "zero_stages",
    "checkpoints",
    "move",
    "source",
    "wall_seconds",
}


def _fmscale(*words: str, **options: Any) -> "subprocess.Popen[str]":
    program = str(Path(sys.executable).with_name("fmscale"))
    return subprocess.Popen([program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def _steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    found = read_jsonl(path) if path.is_file() else iter(())
    return [record["step"] for record in found if "event" not in record]


@pytest.mark.slow
def test_ranks_do_not_outlive_a_quickstart_that_was_killed_and_save(tmp_path: Path) -> None:
    folder = tmp_path / "qs"
    words = ("--folder", str(folder), "--corpus", str(ROOT / "fmscale"), "--steps", "600", "--cpu")
    first = _fmscale("quickstart", *words)
    while first.poll() is None and len(_steps(folder)) < 2:
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()[0]
    ranks = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert psutil.wait_procs(ranks, timeout=120)[1] == []
    chosen = choose(folder=folder, store=None, corpus=(), steps=600, gpus=0)
    assert saved_step(chosen) == max(_steps(folder))


@pytest.mark.slow
def test_a_plain_quickstart_comes_out_also_when_it_is_killed_on_the_way_and_run_again(tmp_path: Path) -> None:
    """The standard library, 60 steps instead of the config's. Order, move and loss must succeed; speeds depend on the
    machine, and are printed.
    """
    folder, steps = Path("runs/quickstart"), 60
    there = tmp_path / folder

    def start() -> "subprocess.Popen[str]":
        words = ("quickstart", "--steps", str(steps))
        return _fmscale(*words, cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})

    here = choose(folder=there, store=None, corpus=(), steps=steps, gpus=0)
    first = start()
    while first.poll() is None and (not _steps(there) or not saved_step(here)):
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()[0]
    # All at once, like a machine without power: no save follows.
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.communicate()
    assert saved_step(here) < steps // 2

    printed = start().communicate(timeout=1800)[0]
    print(printed)
    assert (there / "report.json").is_file(), printed
    found = json.loads((there / "report.json").read_text())
    assert found.keys() >= KEYS
    assert found["order_hash_planned"] == found["order_hash_delivered"]
    assert 0 < found["heldout_bits_per_byte"] < 3
    assert 0.5 < found["primed_zstd_bits_per_byte"] < found["xz_bits_per_byte"] < found["gzip_bits_per_byte"]
    assert found["unbroken"]["steps"] >= 36 > found["move"]["step"]
    assert found["unbroken"]["samples"] == 8 * found["unbroken"]["steps"]
    assert (found["world_sizes"], found["zero_stages"]) == ([2, 1], [2, 3])
    assert found["steps"] == steps
    assert steps // 2 <= found["move"]["step"] == found["move"]["stopped"] < steps
    failed = [claim.what for claim in claims(found) if not claim.ok]
    speeds = ("training waits for data", "no checkpoint stops training")
    assert [what for what in failed if not what.startswith(speeds)] == []
    assert 0 <= found["data_stall_fraction"] < 1
    assert found["ckpt_blocking_seconds_max"] > 0
    assert sorted(set(_steps(there))) == list(range(1, steps + 1))
    assert found["loss_last"] < found["loss_first"] - 2
    assert len(found["completions"]) == 3
    assert found["source"].startswith(("commit ", "fmscale "))
    assert found["wall_seconds"] > 0
    ET.fromstring(_svgs((there / "report.html").read_text()))
    assert "what the model received is what was planned" in " ".join(printed.split())

    # The bytes that `plan` derives equal the stored bytes: fp32 masters and two moments.
    derived = check_run(here.load(), 1).forecast
    assert {one["bytes"] for one in found["checkpoints"]} == {derived.checkpoint_bytes}
    assert check_run(here.load(), 1).begins == f"from checkpoint quickstart@{steps}"
    other = load_config(here.config, [*here.overrides(), "model.hidden_dim=512"])
    assert [one.cause for one in check_run(other, 1).problems] == [f"checkpoint quickstart@{steps} is of another model"]

    before = _steps(there)
    third = start()
    assert third.communicate(timeout=600)[1] is None
    assert third.returncode == (1 if failed else 0)
    assert _steps(there) == before, "a complete run was trained again"
    again = json.loads((there / "report.json").read_text())
    assert again["heldout_bits_per_byte"] == found["heldout_bits_per_byte"]


def _svgs(page: str) -> str:
    """The charts of a page as one XML document."""
    parts = [part.partition("</svg>")[0] for part in page.split("<svg")[1:]]
    return "<all>" + "".join(f"<svg{part}</svg>" for part in parts) + "</all>"
