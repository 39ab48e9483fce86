"""Quickstart: its parts alone, and (slow) the whole road with real ranks, killed on the way and run again."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fmscale.config import derive_batch, load_config
from fmscale.config.model import num_parameters
from fmscale.errors import ConfigError
from fmscale.infer import Document
from fmscale.quickstart.charts import Mark, line_chart, ticks
from fmscale.quickstart.corpus import standard_library
from fmscale.quickstart.heldout import PROMPT_CHARACTERS, prompts
from fmscale.quickstart.page import render
from fmscale.quickstart.results import Report, claims
from fmscale.quickstart.settings import Half, Settings, choose
from fmscale.quickstart.state import State
from fmscale.quickstart.training import saved_step
from fmscale.runtime.sinks import read_jsonl
from fmscale.train.preflight import preflight

ROOT = Path(__file__).parents[1]
KEYS = {
    "loss_first",
    "loss_last",
    "heldout_bits_per_byte",
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
    "wall_seconds",
}


def settings(tmp_path: Path, gpus: int = 0, **changes: Any) -> Settings:
    return choose(
        **{"folder": tmp_path / "qs", "store": None, "corpus": (), "steps": None, "gpus": gpus, **changes}
    )


def report() -> Report:
    """A report as one looks after a good run."""
    document = {"name": "a<b>.py", "bytes": 1000, "model": 1700.0, "gzip": 2200, "xz": 2100}
    checkpoint = {
        "step": 4,
        "epoch": 1,
        "world_size": 2,
        "zero_stage": 2,
        "bytes": 10**6,
        "durable_seconds": 0.2,
    }
    return {
        "run": "qs",
        "store": "file:///store",
        "steps": 8,
        "parameters": 1_900_000,
        "loss_first": 9.0,
        "loss_last": 5.0,
        "heldout_bits_per_byte": 1.7,
        "gzip_bits_per_byte": 2.2,
        "xz_bits_per_byte": 2.1,
        "heldout_documents": 2,
        "heldout_bytes": 1000,
        "tokens": 32_768,
        "tokens_per_second": 5000.0,
        "data_stall_fraction": 0.001,
        "ckpt_blocking_seconds_max": 0.05,
        "order_hash_planned": "0f" * 16,
        "order_hash_delivered": "0f" * 16,
        "world_sizes": [2, 1],
        "zero_stages": [2, 3],
        "resumed_at": [4],
        "checkpoints": [checkpoint, {**checkpoint, "step": 8, "world_size": 1, "zero_stage": 3}],
        "corpus": {"what": "texts", "bytes": 10**6, "documents": 10, "tokens": 10**5},
        "acts": {"ingest": 5.0, "train": 60.0},
        "wall_seconds": 65.0,
        "cpu_seconds": 120.0,
        "documents": [document, {**document, "name": "c.py", "model": 2300.0}],
        "completions": [{"name": "a.py", "prompt": "def ", "text": "<script>alert(1)</script>"}],
        "machine": {"platform": "Linux", "processor": "CPU", "cores": 2, "gpus": []},
        "versions": {"python": "3.11"},
    }


def records() -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": "nan" if step == 3 else 9.0 / step,
            "tokens_per_second": 5e3,
            "data_stall": 0.001,
            "ckpt_blocking": 0.04 * (step == 4),
        }
        for step in range(1, 9)
    ]


def test_the_corpus_is_the_standard_library_without_its_tests():
    files = standard_library()
    assert sum(Path(file).stat().st_size for file in files) > 8e6
    assert any(file.endswith("/json/decoder.py") for file in files)
    assert not [file for file in files if "/test/" in file or "/tests/" in file or "site-packages" in file]


@pytest.mark.parametrize(
    ("gpus", "halves"),
    [
        (0, (Half(world=2, stage=2), Half(world=1, stage=3))),
        (1, (Half(world=1, stage=2), Half(world=1, stage=3))),
        (8, (Half(world=8, stage=2), Half(world=4, stage=3))),
    ],
)
def test_ranks_and_stages_follow_the_machine_and_the_batch_comes_out_for_both(
    tmp_path: Path, gpus: int, halves: tuple[Half, Half]
):
    chosen = settings(tmp_path, gpus)
    assert chosen.halves == halves
    for half in halves:
        config = chosen.load(half)
        assert derive_batch(config.batch, half.world).dp_size == half.world
        assert config.train.zero_stage == half.stage
        assert (config.train.run, config.train.record_delivery) == ("qs", True)
        assert Path(config.train.folder) / "qs" == tmp_path / "qs"


def test_the_model_for_a_cpu_has_at_most_four_million_parameters(tmp_path: Path):
    assert num_parameters(settings(tmp_path).load().model, 8192) <= 4_000_000


def test_too_few_steps_to_stop_half_way_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be stopped half-way"):
        settings(tmp_path, steps=7)


def test_a_folder_keeps_to_its_corpus_and_adds_up_the_time_of_all_tries(tmp_path: Path):
    chosen = settings(tmp_path)
    for _ in range(2):
        state = State(chosen)
        before = state.acts.get("train", 0.0)
        with pytest.raises(KeyError), state.timed("train"):
            raise KeyError
        assert state.acts["train"] > before
    with pytest.raises(ConfigError, match="another corpus"):
        State(replace(chosen, corpus=("elsewhere",)))


def test_prompts_are_whole_lines_within_the_room_and_from_several_documents():
    text = "".join(f"line {i} of a document\n" + "\n" * (i % 7 == 0) for i in range(100))
    many = [Document(name=str(i), text=text.encode(), tokens=np.zeros(1)) for i in range(9)]
    found = list(prompts(many, 1000, lambda prompt: list(prompt.encode())))
    assert [name for name, _ in found] == ["1", "4", "7"]
    for _, prompt in found:
        assert prompt.startswith("line ")
        assert prompt.endswith("\n")
        assert len(prompt) <= PROMPT_CHARACTERS
    short = list(prompts(many, 20, lambda prompt: list(prompt.encode())))
    assert all(0 < len(prompt) <= 20 for _, prompt in short)
    assert list(prompts(many[:1], 1000, list)) != []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.00031), (2.3, 9.1), (0, 48_211), (5, 5)])
def test_ticks_are_round_and_span_the_values(low: float, high: float):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(len(f"{tick:g}") <= 7 for tick in found)


def test_a_chart_is_svg_with_a_gap_where_a_value_is_not_finite_and_a_line_where_the_run_moved():
    svg = line_chart(
        [1, 2, 3, 4], [4.0, float("nan"), 2.0, 1.0], label="loss", marks=[Mark(x=3, label="here")]
    )
    root = ET.fromstring(svg)
    path = root.find("path")
    assert path is not None
    assert path.get("d", "").count("M") == 2
    assert [text.text for text in root.iter("text")].count("here") == 1


def test_the_page_is_one_file_without_script_or_request_and_shows_what_came_out():
    page = render(report(), records())
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<svg") == 5
    assert page.count("resumed: 2 → 1 ranks, stage 2 → 3") == 4
    assert "a&lt;b&gt;.py" in page
    assert page.count("class='ok'") == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"heldout_bits_per_byte": 2.3},
        {"order_hash_delivered": "1f" * 16},
        {"data_stall_fraction": 0.03},
        {"ckpt_blocking_seconds_max": 0.31},
    ],
)
def test_what_did_not_come_out_is_said(wrong: dict[str, Any]):
    assert [claim.ok for claim in claims(report())] == [True] * 4
    assert [claim.ok for claim in claims({**report(), **wrong})].count(False) == 1
    assert "class='failed'" in render({**report(), **wrong}, records())


def _start(folder: Path, corpus: Path, steps: int) -> "subprocess.Popen[str]":
    program = str(Path(sys.executable).with_name("fmscale"))
    words = [program, "quickstart", "--folder", str(folder), "--corpus", str(corpus), "--steps", str(steps)]
    return subprocess.Popen([*words, "--cpu"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    found = read_jsonl(path) if path.is_file() else iter(())
    return [record["step"] for record in found if "event" not in record]


@pytest.mark.slow
def test_ranks_do_not_outlive_a_quickstart_that_was_killed_and_save(tmp_path: Path):
    folder = tmp_path / "qs"
    first = _start(folder, ROOT / "fmscale", 600)
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
def test_the_whole_road_killed_on_the_way_and_run_again(tmp_path: Path):
    folder, steps = tmp_path / "qs", 12
    corpus = ROOT / "fmscale"
    first = _start(folder, corpus, steps)
    while first.poll() is None and len(_steps(folder)) < 4:
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()[0]
    # All at once, as a machine that goes down: nothing is saved any more.
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.communicate()

    second = _start(folder, corpus, steps)
    printed = second.communicate(timeout=900)[0]
    assert second.returncode == 0, printed
    found = json.loads((folder / "report.json").read_text())
    assert found.keys() >= KEYS
    assert found["order_hash_planned"] == found["order_hash_delivered"]
    assert (found["world_sizes"], found["zero_stages"]) == ([2, 1], [2, 3])
    assert sorted(set(_steps(folder))) == list(range(1, steps + 1))
    assert found["loss_last"] < found["loss_first"] - 0.5
    assert found["ckpt_blocking_seconds_max"] > 0
    assert len(found["completions"]) == 3
    assert min(found["gzip_bits_per_byte"], found["xz_bits_per_byte"]) > 1
    ET.fromstring(_svgs((folder / "report.html").read_text()))
    assert "what the model received is what was planned" in " ".join(printed.split())

    # What `plan` derives is what was stored: fp32 masters and two moments.
    chosen = choose(folder=folder, store=None, corpus=(str(corpus),), steps=steps, gpus=0)
    derived = preflight(chosen.load(), 1).forecast
    assert {one["bytes"] for one in found["checkpoints"]} == {derived.checkpoint_bytes}
    assert preflight(chosen.load(), 1).begins == f"from checkpoint qs@{steps}"
    other = load_config(chosen.config, [*chosen.overrides(), "model.hidden_dim=512"])
    assert [one.cause for one in preflight(other, 1).problems] == [
        f"checkpoint qs@{steps} is of another model"
    ]

    before = _steps(folder)
    third = _start(folder, corpus, steps)
    assert third.communicate(timeout=600)[1] is None
    assert third.returncode == 0
    assert _steps(folder) == before, "a complete run was trained again"
    again = json.loads((folder / "report.json").read_text())
    assert again["heldout_bits_per_byte"] == found["heldout_bits_per_byte"]


def _svgs(page: str) -> str:
    """The charts of a page as one XML document."""
    parts = [part.partition("</svg>")[0] for part in page.split("<svg")[1:]]
    return "<all>" + "".join(f"<svg{part}</svg>" for part in parts) + "</all>"
