"""Quickstart: its single parts, and its reported results."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import derive_batch, load_config
from fmscale.config.derived import num_parameters
from fmscale.data.ingest.content import text_hash
from fmscale.errors import ConfigError, DataError
from fmscale.infer import Document
from fmscale.quickstart.acts import run_quickstart
from fmscale.quickstart.corpus import heldout_share, standard_library
from fmscale.quickstart.heldout import PROMPT_CHARACTERS, prompts
from fmscale.quickstart.page import render
from fmscale.quickstart.results import Report, bits, claims, find_move, verdict
from fmscale.quickstart.settings import Half, QuickstartSettings, choose
from fmscale.quickstart.state import QuickstartState
from fmscale.quickstart.training import train_unbroken


def settings(tmp_path: Path, gpus: int = 0, **changes: Any) -> QuickstartSettings:
    return choose(**{"folder": tmp_path / "qs", "store": None, "corpus": (), "steps": None, "gpus": gpus, **changes})


def report() -> Report:
    """A report of a good run."""
    document = {"name": "a<b>.py", "bytes": 1000, "model": 1700.0, "gzip": 2200, "xz": 2100, "primed": 1800}
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
        "unbroken": {
            "steps": 5,
            "equal_steps": 4,
            "largest_difference": 1e-5,
            "samples": 80,
            "same_samples": True,
        },
        "primed_bytes": 900_000,
        "warnings": [],
        "primed_zstd_bits_per_byte": 1.8,
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
        "source": "commit 0f0f",
        "move": {"step": 4, "stopped": 4},
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


def test_the_corpus_is_the_standard_library_without_its_tests() -> None:
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
) -> None:
    chosen = settings(tmp_path, gpus)
    assert chosen.halves == halves
    for half in halves:
        config = chosen.load(half)
        assert derive_batch(config.batch, half.world).dp_size == half.world
        assert config.train.zero_stage == half.stage
        assert (config.train.run, config.train.record_delivery) == ("qs", True)
        assert Path(config.train.folder) / "qs" == tmp_path / "qs"


def test_the_model_for_a_cpu_has_at_most_four_million_parameters(tmp_path: Path) -> None:
    assert num_parameters(settings(tmp_path).load().decoder("this test"), 8192) <= 4_000_000


def test_too_few_steps_to_stop_half_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be stopped half-way"):
        settings(tmp_path, steps=7)


def test_a_folder_keeps_to_its_corpus_and_adds_up_the_time_of_all_tries(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    for _ in range(2):
        state = QuickstartState(chosen, Silent())
        before = state.acts.get("train", 0.0)
        with pytest.raises(KeyError), state.act("train"):
            raise KeyError
        assert state.acts["train"] > before
    with pytest.raises(ConfigError, match="another corpus"):
        QuickstartState(replace(chosen, corpus=("elsewhere",)), Silent())


def test_a_folder_that_version_1_wrote_goes_on(tmp_path: Path) -> None:
    """The text of the first writer, unchanged."""
    chosen = settings(tmp_path)
    text = (
        '{\n  "format_version": 1,\n  "corpus": [],\n  "store": "STORE",\n  "config": "run/quickstart",\n'
        '  "acts": {\n    "ingest": 5.642720539999573\n  },\n  "cpu": {\n    "ingest": 6.3186810000000015\n  }\n}\n'
    ).replace("STORE", chosen.store)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (chosen.folder / "quickstart.json").write_text(text)
    state = QuickstartState(chosen, Silent())
    assert (state.acts, state.cpu) == ({"ingest": 5.642720539999573}, {"ingest": 6.3186810000000015})
    assert (chosen.folder / "quickstart.json").read_text() == text


class Silent:
    """A screen without a viewer."""

    def begin(self, act: str) -> None: ...
    def advance(self, act: str, done: float, total: float, note: str = "") -> None: ...
    def end(self, act: str, note: str) -> None: ...
    def tell(self, words: str) -> None: ...


def test_a_corpus_of_which_nothing_is_held_out_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_begin(*_: Any) -> int:
        pytest.fail("trained, with nothing to measure on")

    monkeypatch.setattr("fmscale.quickstart.acts._train", must_not_begin)
    monkeypatch.setattr("fmscale.quickstart.acts.ingest", must_not_begin)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text one of one\n" * 20)
    with pytest.raises(DataError, match="no document of the corpus was held out") as caught:
        run_quickstart(settings(tmp_path, corpus=(str(tmp_path / "texts"),)), Silent())
    assert "1 document;" in str(caught.value.found)
    assert "--corpus" in caught.value.remedy


@pytest.mark.parametrize("count", [2, 12, 200])
def test_of_few_files_a_larger_share_is_held_out(tmp_path: Path, count: int) -> None:
    for i in range(count):
        (tmp_path / f"{i}.md").write_text(f"text {i}\n")
    share = heldout_share([str(tmp_path)], str(tmp_path / "store"))
    held = [text_hash(f"text {i}\n") < share * 2**64 for i in range(count)]
    assert True in held
    assert False in held
    (tmp_path / "more.jsonl").write_text('{"text": "one of many"}\n')
    assert heldout_share([str(tmp_path)], str(tmp_path / "store")) == 0.03


def test_a_small_corpus_is_warned_of_before_it_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    screen = Silent()
    monkeypatch.setattr(screen, "tell", told.append)

    class Begun(Exception):
        pass

    def begin(*_: Any) -> None:
        raise Begun

    monkeypatch.setattr("fmscale.quickstart.acts.train_run", begin)
    (tmp_path / "texts").mkdir()
    for i in range(100):
        (tmp_path / f"texts/{i}.txt").write_text(f"text {i} of few, about {i * i}\n" * 40)
    with pytest.raises(Begun):
        run_quickstart(settings(tmp_path, corpus=(str(tmp_path / "texts"),)), screen)
    assert len(told) == 1
    assert re.match(r"warning: the run reads dataset corpus \([\d,]+ tokens\) \d+ times", told[0])
    assert re.search(r"Give [\d,]+ tokens or more, or train\.steps \d+\.", told[0])


def test_prompts_are_whole_lines_within_the_room_and_from_several_documents() -> None:
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
    assert list(prompts(many[:1], 1000, lambda prompt: list(prompt.encode()))) != []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"unbroken": {**report()["unbroken"], "largest_difference": 0.01}},
        {"unbroken": {**report()["unbroken"], "same_samples": False}},
        {"unbroken": {**report()["unbroken"], "steps": 4}},
        {"order_hash_delivered": "1f" * 16},
        {"data_stall_fraction": 0.03},
        {"ckpt_blocking_seconds_max": 0.31},
        {"move": None, "world_sizes": [2], "zero_stages": [2]},
        {"move": {"step": 4, "stopped": 5}},
        {"move": {"step": 8, "stopped": 8}, "unbroken": {**report()["unbroken"], "steps": 10}},
        {"world_sizes": [2]},
        {"zero_stages": [2]},
    ],
)
def test_what_did_not_come_out_is_said_and_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    found, failures = {**report(), **wrong}, int(bool(wrong))
    oks = [claim.ok for claim in claims(found)]
    assert (len(oks), oks.count(False)) == (5, failures)
    assert render(found, records(), records()[:5]).count("class='failed'") == failures
    monkeypatch.setattr("fmscale.quickstart.acts.run_quickstart", lambda *_: found)
    ended = CliRunner().invoke(build_app(), ["quickstart", "--folder", str(tmp_path), "--cpu", "--json"])
    assert ended.exit_code == failures
    assert ended.stderr.count("did not come out: ") == failures
    assert json.loads(ended.stdout) == found


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (1.62, "needs 10% fewer bits than zstd −19 that has read the 0.9 MB"),
        (4.9, "more bits than zstd −19 that"),
    ],
)
def test_who_stores_text_in_fewer_bits_is_said_and_fails_nothing(mine: float, words: str) -> None:
    found = {**report(), "heldout_bits_per_byte": mine}
    assert words in verdict(found)
    assert verdict(found).endswith("wins") == (mine > 1.8)
    assert all(claim.ok for claim in claims(found))
    assert verdict(found) in render(found, records(), records()[:5])
    assert list(bits(found).values()) == [mine, 1.8, 2.1, 2.2]


def test_an_unbroken_run_that_did_not_come_far_enough_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path)
    begun: list[Path] = []

    def run(settings: QuickstartSettings, half: Half, watch: Any, *, stop_at: int, unbroken: Path) -> None:
        begun.append(unbroken)
        overrides = settings.overrides(half, unbroken=unbroken)
        assert {"checkpoint.every=null", "train.resume=never"} <= set(overrides), "it would go on, as a broken one"
        config = load_config(settings.config, overrides)
        assert Path(config.train.folder) / config.train.run == unbroken
        unbroken.mkdir(parents=True)
        last = 4 if len(begun) == 1 else stop_at
        lines = [json.dumps({"step": step}) + "\n" for step in range(1, last + 1)]
        (unbroken / "metrics.jsonl").write_text("".join(lines))

    monkeypatch.setattr("fmscale.quickstart.training._run_job", run)
    first, *later = (train_unbroken(chosen, 6, lambda record: None) for _ in range(3))
    assert len(begun) == len(set(begun)) == 2
    assert first == begun[0]
    assert later == [begun[1]] * 2


def test_a_machine_with_one_gpu_moves_between_stages_alone() -> None:
    assert all(claim.ok for claim in claims({**report(), "world_sizes": [1]}))


def test_the_move_is_where_ranks_or_stage_changed_and_says_how_far_the_others_got(tmp_path: Path) -> None:
    def find(lines: list[dict[str, Any]], *places: tuple[int, int, int]) -> dict[str, int] | None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        names = ("step", "world_size", "zero_stage")
        return find_move([dict(zip(names, place, strict=True)) for place in places], tmp_path)

    def steps(first: int, last: int) -> list[dict[str, Any]]:
        return [{"step": step} for step in range(first, last + 1)]

    def resumed(step: int) -> list[dict[str, Any]]:
        return [{"event": "resumed", "step": step}]

    # Killed after 3, stopped after 5, killed after 7 and resumed at 5.
    whole = [*steps(1, 3), *resumed(2), *steps(3, 5), *resumed(5), *steps(6, 7), *resumed(5), *steps(6, 8)]
    assert find(whole, (2, 2, 2), (5, 2, 2), (8, 1, 3)) == {"step": 5, "stopped": 5}
    assert find(whole, (2, 1, 2), (5, 1, 2), (8, 1, 3)) == {"step": 5, "stopped": 5}
    killed = [*steps(1, 6), *resumed(5), *steps(6, 8)]
    assert find(killed, (5, 2, 2), (8, 1, 3)) == {"step": 5, "stopped": 6}
    assert find(steps(1, 8), (4, 2, 2), (8, 2, 2)) is None
