"""Tuning: wrong, refused, crashing and hanging configurations are rejected, with the versions; the rest is timed."""

import itertools
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from fmscale.kernels.dispatch import TunedEntry, TunedTable, read_table
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.kernels import command
from benchmarks.kernels import problems as real
from benchmarks.kernels.command import main
from benchmarks.kernels.tune import known_table, tune, write_table
from tests.kernels.bench.tuning_problems import BREAKING, DEADLY, REFUSED, RIGHT, WRONG

ROOT = Path(__file__).parents[3]
VERSIONS = {"triton": "3.6.0", "ptxas": "12.8"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TunedTable, list[str], list[int]]:
    """The table of `tuning_problems`, the printed lines, and the number of entries at each save."""
    said: list[str] = []
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        table = tune(
            "tests.kernels.bench.tuning_problems:problems", "cpu", VERSIONS, said.append,
            save=lambda table: saved.append(len(table.entries)),
        )  # fmt: skip
    return table, said, saved


def test_wrong_refused_and_deadly_configurations_are_rejected(tuned: tuple[TunedTable, list[str], list[int]]) -> None:
    table = tuned[0]
    reasons = {r["config"]["kind"]: r["reason"] for r in table.rejected if r["bucket"] == "one"}
    assert "largest error" in reasons[WRONG]
    assert "out of resource" in reasons[REFUSED]
    assert reasons[DEADLY] == "crashed: exit status 17"
    assert "illegal memory access" in reasons[BREAKING]  # and later configurations were tried in a new process
    assert set(reasons) == {WRONG, REFUSED, DEADLY, BREAKING}
    assert all((r["triton"], r["ptxas"]) == ("3.6.0", "12.8") for r in table.rejected)
    assert (table.gpu, table.triton) == ("cpu", "3.6.0")


def test_the_fastest_of_the_right_is_chosen(tuned: tuple[TunedTable, list[str], list[int]]) -> None:
    one = tuned[0].entries[0]
    assert (one.op, one.bucket, one.backend) == ("twice", "one", "triton")
    assert one.configs == {"forward": {"kind": RIGHT}}
    assert one.milliseconds["triton"] < one.milliseconds["eager"]


def test_a_backend_that_is_wrong_is_not_offered(tuned: tuple[TunedTable, list[str], list[int]]) -> None:
    table, said, _ = tuned
    assert set(table.entries[0].milliseconds) == {"triton", "eager"}
    assert any("backend sdpa: result 0: largest error" in line for line in said)


def test_a_wrong_default_of_one_kernel_does_not_condemn_the_others(
    tuned: tuple[TunedTable, list[str], list[int]],
) -> None:
    table = tuned[0]
    two = table.entries[1]
    assert two.configs == {"forward": {"kind": RIGHT}, "backward": {"kind": RIGHT}}
    blamed = [(r["kernel"], r["config"]) for r in table.rejected if r["bucket"] == "two"]
    assert blamed == [("backward", {"kind": WRONG})]


def test_an_op_without_a_right_configuration_falls_back(tuned: tuple[TunedTable, list[str], list[int]]) -> None:
    table = tuned[0]
    none = table.entries[2]
    assert (none.bucket, none.backend, none.configs) == ("none", "eager", {})
    assert set(none.milliseconds) == {"eager"}
    assert [r["kernel"] for r in table.rejected if r["bucket"] == "none"] == ["forward with backward"]


def test_a_problem_that_cannot_be_made_rejects_no_configuration(
    tuned: tuple[TunedTable, list[str], list[int]],
) -> None:
    table, said, _ = tuned
    assert "twice, too large is not tuned: OutOfMemoryError: too large" in said
    assert not [r for r in table.rejected if r["bucket"] == "too large"]
    assert len(table.entries) == 3


def test_what_was_measured_is_saved_after_every_problem(tuned: tuple[TunedTable, list[str], list[int]]) -> None:
    assert tuned[2] == [1, 2, 3]


def test_the_table_survives_a_file(tuned: tuple[TunedTable, list[str], list[int]], tmp_path: Path) -> None:
    assert read_table(write_table(tuned[0], tmp_path)) == tuned[0]


def more(table: TunedTable | None, **options: Any) -> tuple[TunedTable, list[str]]:
    """The table after another run, and the printed lines."""
    said: list[str] = []
    found = tune("tests.kernels.bench.tuning_problems:quick", "cpu", VERSIONS, said.append, known=table, **options)
    return found, said


def measured(said: list[str]) -> list[str]:
    """The buckets timed in this run."""
    return [line.split(":")[0].split(", ")[1] for line in said if "'triton':" in line]


def test_the_next_run_goes_on_where_the_first_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A budget of 10 s, with 4 s for each read of the clock: two problems, and the third in the next run."""
    monkeypatch.chdir(ROOT)
    ticks = itertools.count(0.0, 4.0)
    first, said = more(None, seconds=10.0, clock=lambda: next(ticks))
    assert measured(said) == ["a", "b"]
    assert said[-1] == "1 of 3 problems left after 10 s: the same command goes on"
    assert len(first.rejected) == 2
    write_table(first, tmp_path)
    known = known_table(tmp_path, "cpu", "3.6.0")
    assert known == first
    second, said = more(known)
    assert measured(said) == ["c"]
    assert second.entries[:2] == first.entries
    assert second.rejected[:2] == first.rejected
    assert [entry.bucket for entry in second.entries] == ["a", "b", "c"]
    third, said = more(second)
    assert said == ["nothing to tune: all that was asked for is in the table (--again measures it once more)"]
    assert third == second


def test_only_what_is_named_is_measured_again_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept, old = (
        TunedEntry(op="twice", bucket=bucket, backend="eager", milliseconds={"eager": 1.0}) for bucket in ("kept", "b")
    )
    reasons = tuple({"op": "twice", "bucket": bucket, "reason": "old"} for bucket in ("b", "kept"))
    known = TunedTable(gpu="cpu", triton="3.6.0", entries=(kept, old), rejected=reasons)
    found, said = more(known, only="twice [b]$", again=True)
    assert measured(said) == ["b"]
    assert found.entries[0] == kept
    assert [(entry.bucket, entry == old) for entry in found.entries] == [("kept", False), ("b", False)]
    assert [(one["bucket"], one["reason"] == "old") for one in found.rejected] == [
        ("kept", True),
        ("b", False),
    ]


def test_a_pattern_that_finds_nothing_says_so() -> None:
    assert more(None, only="twise")[1] == ["no op and case has 'twise'"]


def test_a_table_of_another_device_version_or_format_is_not_known(tmp_path: Path) -> None:
    write_table(TunedTable(gpu="other", triton="3.6.0"), tmp_path)
    write_table(TunedTable(gpu="cpu", triton="3.7.1"), tmp_path)
    (tmp_path / "a.triton-3.6.0.json").write_text('{"format_version": 0}')
    assert known_table(tmp_path, "cpu", "3.6.0") is None
    assert known_table(tmp_path / "absent", "cpu", "3.6.0") is None
    assert known_table(tmp_path, "cpu", "3.7.1") == TunedTable(gpu="cpu", triton="3.7.1")


@pytest.mark.parametrize("words", [["--again"], ["--tune", "--only", "("]])
def test_what_does_not_go_with_the_tuner_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert re.search("goes with --tune|is not a regular expression", capsys.readouterr().err)


def test_the_command_goes_on_from_the_table_in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = TunedTable(gpu="a GPU", triton="3.6.0", entries=(TunedEntry(op="twice", bucket="a", backend="eager"),))
    write_table(known, tmp_path)
    asked: dict[str, Any] = {}

    def spy(*_: object, **options: Any) -> TunedTable:
        asked.update(options)
        return known

    monkeypatch.setattr(command, "obstacle", lambda: None)
    monkeypatch.setattr(command, "tune", spy)
    monkeypatch.setattr("benchmarks.kernels.report.versions", lambda: VERSIONS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(name="a GPU"))
    words = ["--tune", "--again", "--seconds", "9", "--only", "rope", "--output", str(tmp_path)]
    assert main(words) == 0
    assert (asked["known"], asked["only"], asked["seconds"], asked["again"]) == (known, "rope", 9.0, True)


@pytest.mark.slow
def test_a_configuration_that_hangs_and_a_deadly_backend_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    said: list[str] = []
    problems = "tests.kernels.bench.tuning_problems:hanging"
    table = tune(problems, "cpu", VERSIONS, said.append, patience=20.0)
    assert [r["reason"] for r in table.rejected] == ["no answer within 20 s"]
    assert [(e.backend, set(e.milliseconds)) for e in table.entries] == [("eager", {"eager"})]
    assert any("deadly: crashed: exit status 18" in line for line in said)


class Asked(Exception):
    """Raised in place of choosing a backend."""


@pytest.mark.parametrize("problem", real.problems(), ids=lambda p: f"{p.op} {p.bucket}")
def test_the_real_problems_tune_the_buckets_that_the_ops_ask_for(
    problem: real.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(op: str, backend: str, device: torch.device, case: str, refusals: object) -> str:
        raise Asked(op, case)

    for name, module in list(sys.modules.items()):
        if name.startswith("fmscale.kernels.") and hasattr(module, "choose"):
            monkeypatch.setattr(module, "choose", choose)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(Asked) as asked:
        problem.make(torch.device("cpu"))[0]["triton"].run()
    assert asked.value.args == (problem.op, problem.bucket)
    assert all(problem.kernels.values())


def test_every_bucket_is_tuned_once() -> None:
    seen = [(p.op, p.bucket) for p in real.problems()]
    assert len(set(seen)) == len(seen)
