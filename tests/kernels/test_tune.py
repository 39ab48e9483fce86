"""Tuning: what is wrong, refused, deadly or hanging is rejected, with the versions, and the rest is timed."""

import sys
from pathlib import Path

import pytest
import torch
from fmscale.kernels.bench import problems as real
from fmscale.kernels.bench.tune import tune
from fmscale.kernels.dispatch import Table, read_table, write_table
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.tuning_problems import BREAKING, DEADLY, REFUSED, RIGHT, WRONG

ROOT = Path(__file__).parents[2]
VERSIONS = {"triton": "3.6.0", "ptxas": "12.8"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, list[str], list[int]]:
    """The table of `tuning_problems`, what was said, and the number of entries at each save."""
    said: list[str] = []
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        table = tune(
            "tests.kernels.tuning_problems:problems", "cpu", VERSIONS, said.append,
            save=lambda table: saved.append(len(table.entries)),
        )  # fmt: skip
    return table, said, saved


def test_wrong_refused_and_deadly_configurations_are_rejected(tuned: tuple[Table, list[str], list[int]]):
    table = tuned[0]
    reasons = {r["config"]["kind"]: r["reason"] for r in table.rejected if r["bucket"] == "one"}
    assert "largest error" in reasons[WRONG]
    assert "out of resource" in reasons[REFUSED]
    assert reasons[DEADLY] == "crashed: exit status 17"
    assert "illegal memory access" in reasons[BREAKING]  # and those after it were tried in a new process
    assert set(reasons) == {WRONG, REFUSED, DEADLY, BREAKING}
    assert all((r["triton"], r["ptxas"]) == ("3.6.0", "12.8") for r in table.rejected)
    assert (table.gpu, table.triton) == ("cpu", "3.6.0")


def test_the_fastest_of_the_right_is_chosen(tuned: tuple[Table, list[str], list[int]]):
    one = tuned[0].entries[0]
    assert (one.op, one.bucket, one.backend) == ("twice", "one", "triton")
    assert one.configs == {"forward": {"kind": RIGHT}}
    assert one.milliseconds["triton"] < one.milliseconds["eager"]


def test_a_backend_that_is_wrong_is_not_offered(tuned: tuple[Table, list[str], list[int]]):
    table, said, _ = tuned
    assert set(table.entries[0].milliseconds) == {"triton", "eager"}
    assert any("backend sdpa: result 0: largest error" in line for line in said)


def test_a_wrong_default_of_one_kernel_does_not_condemn_the_others(tuned: tuple[Table, list[str], list[int]]):
    table = tuned[0]
    two = table.entries[1]
    assert two.configs == {"forward": {"kind": RIGHT}, "backward": {"kind": RIGHT}}
    blamed = [(r["kernel"], r["config"]) for r in table.rejected if r["bucket"] == "two"]
    assert blamed == [("backward", {"kind": WRONG})]


def test_an_op_without_a_right_configuration_falls_back(tuned: tuple[Table, list[str], list[int]]):
    table = tuned[0]
    none = table.entries[2]
    assert (none.bucket, none.backend, none.configs) == ("none", "eager", {})
    assert set(none.milliseconds) == {"eager"}
    assert [r["kernel"] for r in table.rejected if r["bucket"] == "none"] == ["forward with backward"]


def test_a_problem_that_cannot_be_made_rejects_no_configuration(tuned: tuple[Table, list[str], list[int]]):
    table, said, _ = tuned
    assert "twice, too large is not tuned: OutOfMemoryError: too large" in said
    assert not [r for r in table.rejected if r["bucket"] == "too large"]
    assert len(table.entries) == 3


def test_what_was_measured_is_saved_after_every_problem(tuned: tuple[Table, list[str], list[int]]):
    assert tuned[2] == [1, 2, 3]


def test_the_table_survives_a_file(tuned: tuple[Table, list[str], list[int]], tmp_path: Path):
    assert read_table(write_table(tuned[0], tmp_path)) == tuned[0]


@pytest.mark.slow
def test_a_configuration_that_hangs_and_a_deadly_backend_are_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    said: list[str] = []
    problems = "tests.kernels.tuning_problems:hanging"
    table = tune(problems, "cpu", VERSIONS, said.append, patience=20.0)
    assert [r["reason"] for r in table.rejected] == ["no answer within 20 s"]
    assert [(e.backend, set(e.milliseconds)) for e in table.entries] == [("eager", {"eager"})]
    assert any("deadly: crashed: exit status 18" in line for line in said)


class Asked(Exception):
    """Raised in place of choosing a backend."""


@pytest.mark.parametrize("problem", real.problems(), ids=lambda p: f"{p.op} {p.bucket}")
def test_the_real_problems_tune_the_buckets_that_the_ops_ask_for(
    problem: real.Problem, monkeypatch: pytest.MonkeyPatch
):
    def choose(op: str, backend: str, device: torch.device, case: str, refusals: object) -> str:
        raise Asked(op, case)

    for name, module in list(sys.modules.items()):
        if name.startswith("fmscale.kernels.") and hasattr(module, "choose"):
            monkeypatch.setattr(module, "choose", choose)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(Asked) as asked:
        problem.make(torch.device("cpu"))[0]["triton"].run()
    assert asked.value.args == (problem.op, problem.bucket)
    assert all(problem.kernels.values())


def test_every_bucket_is_tuned_once():
    seen = [(p.op, p.bucket) for p in real.problems()]
    assert len(set(seen)) == len(seen)
