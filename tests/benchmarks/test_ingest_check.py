"""`fmscale bench ingest`: a drawn part of its cases, and a judge that sees each kind of fault."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ingest import CASES, choose, run
from benchmarks.odd.case import ANY, Case, printed
from benchmarks.odd.check import judge, losses
from fmscale.errors import ConfigError

SEED = 11


def test_a_drawn_part_of_the_odd_input_arrives_as_plain_readers_see_it() -> None:
    rows = run(quick=True, seed=SEED)
    assert len(rows) == 25
    assert [row for row in rows if not row["ok"]] == []


def test_there_are_at_least_150_cases_and_each_has_a_name_of_its_own() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 150
    assert {case.id.count("/") for case in CASES} == {1}
    assert len(choose(quick=True, only=(), seed=1)) == 25
    assert choose(quick=True, only=(), seed=1) != choose(quick=True, only=(), seed=2)
    with pytest.raises(ConfigError, match="no case"):
        choose(quick=False, only=("nothing like it",), seed=0)


def outcome(error: str = "", peak: int = 0, **skipped: list[str]) -> dict[str, Any]:
    left_out = {reason: {"count": len(names), "first": names} for reason, names in skipped.items()}
    return {"error": error, "skipped": left_out, "guessed": {}, "peak": peak}


def case(**options: Any) -> Case:
    return Case(kind="k", name="n", make=lambda folder: None, **options)


A, B = printed("a.txt", "a"), printed("b.txt", "b")


@pytest.mark.parametrize(
    ("seen", "found", "fault"),
    [
        ([A], outcome(broken=["k/n/c"]), "1 lost"),
        ([A, A, B], outcome(broken=["k/n/c"]), "1 too many"),
        ([B, A], outcome(broken=["k/n/c"]), "another order"),
        ([A, printed("b.txt", "c")], outcome(broken=["k/n/c"]), "1 lost: 'b.txt', 1 bytes, 'b'; 1 too many"),
        ([A, printed("c.txt", "b")], outcome(broken=["k/n/c"]), "1 lost"),
        ([A, B], outcome(), "0 broken, not 1"),
        ([A, B], outcome(broken=["k/other/c"]), "0 broken, not 1"),
        ([A, B], outcome(broken=["k/n/c"], empty=["k/n/d"]), "1 empty, not 0"),
        ([], outcome("DataError: x"), "the job ended: DataError: x"),
        ([A, B], outcome(peak=250 * 10**6 + 5, broken=["k/n/c"]), "250 MB of memory"),
        ([A, B], outcome(broken=["k/n/c"]), ""),
    ],
)
def test_the_judge_sees(seen: list[Any], found: dict[str, Any], fault: str) -> None:
    verdict = judge(case(left_out={"broken": 1}), [A, B], seen, found, True, 1)
    assert fault in "; ".join(verdict.faults)
    assert bool(verdict.faults) == bool(fault)


@pytest.mark.parametrize(
    ("found", "committed", "fault"),
    [
        (outcome(), True, "did not end"),
        (outcome("DataError: another"), False, "another error"),
        (outcome("DataError: it changed"), True, "something was committed"),
        (outcome("OSError without cause and remedy: it changed"), False, "another error"),
        (outcome("DataError: it changed"), False, ""),
    ],
)
def test_a_job_must_end_as_the_case_asks(found: dict[str, Any], committed: bool, fault: str) -> None:
    faults = judge(case(ends="changed"), [], [], found, committed, 1).faults
    assert fault in "; ".join(faults)
    assert bool(faults) == bool(fault)


def test_what_damage_costs_is_counted_and_the_rest_is_right(tmp_path: Path) -> None:
    damaged = case(documents={"a": lambda path: []}, original=("x", "y", "z"))
    x, y, z, w = (printed("a", text) for text in "xyzw")
    assert losses(damaged, [x], [x, y, z], outcome()["skipped"]) == []
    assert losses(damaged, [x], [x, z], outcome(broken=["k/n/a: row 1"])["skipped"]) == []
    assert "lost in silence" in losses(damaged, [x], [x], outcome()["skipped"])[0]
    assert "wrong document" in losses(damaged, [x], [x, w], outcome(broken=["k/n/a"])["skipped"])[0]
    any_ = case(left_out={"*": ANY})
    assert judge(any_, [], [], outcome(), True, 1).faults == ["nothing was counted"]
    assert judge(any_, [], [], outcome(undecodable=["k/n/a"] * 3), True, 1).faults == []
