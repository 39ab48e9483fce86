"""The ten minutes on one GPU: time of the steps, records after a kill, and failed processes."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.gpu_hour import install, source, wheels
from benchmarks.gpu_hour.hour import CLOSING_SECONDS, allowance
from benchmarks.gpu_hour.jobs import Job, Outcome, run_jobs
from benchmarks.gpu_hour.journal import LOG, LOG_BYTES, RESULTS, Journal
from benchmarks.gpu_hour.setting import Setting, Step
from benchmarks.gpu_hour.steps import SECONDS, chosen, steps
from fmscale.cli.main import build_app

ROOT = Path(__file__).parents[2]
SCRIPTS = ("gpu_hour.sh", "gpu_wheels.sh")


def job(name: str, script: str, seconds: float = 60.0) -> Job:
    return Job(name=name, command=("sh", "-c", script), seconds=seconds)


def run(*jobs: Job, at_once: int = 2, seconds: float = 60.0) -> tuple[dict[str, Outcome], list[Any], list[str]]:
    """Outcomes, records, and the other lines."""
    records: list[Any] = []
    lines: list[str] = []
    outcomes = run_jobs(
        jobs, at_once=at_once, deadline=time.monotonic() + seconds,
        record=lambda job, found: records.append((job, found)), say=lines.append, ended=lambda outcome: None,
    )  # fmt: skip
    return {one.job: one for one in outcomes}, records, lines


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_sound_shell(script: str) -> None:
    path = str(ROOT / "benchmarks" / script)
    subprocess.check_call(["sh", "-n", path])
    assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.check_call(["shellcheck", path])


def test_a_step_gets_what_is_left_and_is_not_begun_with_too_little() -> None:
    step = Step(name="6", what="", least=100, most=260, jobs=(), disk=45 * 10**9)
    assert allowance(step, 400.0, 10**11) == (260, "")
    assert allowance(step, 150.0, 10**11) == (150, "")
    seconds, reason = allowance(step, 20.4, 10**11)
    assert seconds == 0
    assert "20 s were left of the 100" in reason
    assert "10 GB of disk were free of the 45" in allowance(step, 400.0, 10**10)[1]


@pytest.mark.parametrize("mode", ["train", "kernels"])
def test_the_steps_fit_the_time_and_their_names_are_their_own(mode: str, tmp_path: Path) -> None:
    """The steps that carry the claims fit in full, also where an earlier step takes all of its time."""
    made = steps(mode, Setting(python="python3", scratch=tmp_path, dry=False))
    last = {"train": "6", "kernels": "rows"}[mode]
    carry = made[: [step.name for step in made].index(last) + 1]
    assert sum(step.most for step in carry[1:-1]) + carry[-1].least + 20 <= SECONDS[mode] - CLOSING_SECONDS
    assert sum(step.least for step in made) < SECONDS[mode]
    assert sum(SECONDS.values()) == 540
    names = [one.name for step in made for one in step.jobs]
    assert len(set(names)) == len(names)
    assert [step.name for step in chosen(made, made[-1].name)] == ["0", made[-1].name]
    with pytest.raises(ValueError, match="no such step: found 9"):
        chosen(made, "9")


def test_a_job_that_fails_is_on_record_with_its_last_lines_and_the_next_runs() -> None:
    told = """echo '..@record {"a": 1}'; echo broken >&2; exit 3"""
    outcomes, records, lines = run(job("bad", told), job("good", "echo '@record {\"a\": 2}'"), at_once=1)
    assert not outcomes["bad"].ok
    assert outcomes["bad"].reason == "exit 3\nbroken"
    assert outcomes["good"].ok
    assert records == [("bad", {"a": 1}), ("good", {"a": 2})]
    assert lines == ["[bad] broken\n"]


def test_a_job_that_does_not_end_is_killed_with_its_children_and_what_it_said_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "pid"
    told = f"sleep 600 & echo $! > {mine}; echo '@record {{\"a\": 1}}'; wait"
    outcomes, records, _ = run(job("hangs", told, seconds=1.0), job("late", "true"), at_once=1, seconds=1.0)
    assert outcomes["hangs"].reason.startswith("no end within 1 s")
    assert records == [("hangs", {"a": 1})]
    assert ended(int(mine.read_text()))
    assert outcomes["late"].reason == "not begun: no time was left"


def test_what_a_job_leaves_running_ends_with_it(tmp_path: Path) -> None:
    mine = tmp_path / "pid"
    outcomes, _, _ = run(job("leaves", f"sleep 600 & echo $! > {mine}"))
    assert outcomes["leaves"].ok
    assert ended(int(mine.read_text()))


def ended(pid: int) -> bool:
    """True if a process ends: a killed process may take a moment."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 30)[0])
    finally:
        os.close(process)


def test_a_record_is_on_disk_at_once_and_the_log_stays_small(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record("begin", loss=float("nan"), deep=[{"x": float("inf")}])
    assert json.loads((tmp_path / RESULTS).read_text()) == {
        "kind": "begin",
        "loss": None,
        "deep": [{"x": None}],
    }
    for number in range(3 * LOG_BYTES // 500):
        journal.say(f"{number} ".ljust(10_000, "x"))
    journal.close()
    text = (tmp_path / LOG).read_text()
    assert len(text) <= LOG_BYTES
    assert text.splitlines()[-1].startswith(f"{number} ")
    Journal(tmp_path).close()
    [earlier] = tmp_path.glob("results.*.jsonl")
    assert earlier.read_text().startswith('{"kind": "begin"')


def test_wheels_have_the_versions_that_the_tests_ran_with() -> None:
    assert wheels.version("deepspeed") == "0.19.8"
    assert wheels.version("annotated_types").count(".") == 2
    assert wheels.refusal(3 * 2**20, 17 * 2**20) == ""
    assert "found 61.0 MiB (44.0 and 17.0), at most 60" in wheels.refusal(44 * 2**20, 17 * 2**20)


def test_without_wheels_the_machine_is_told_what_to_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "WHEELS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["install", str(tmp_path / "venv")])
    with pytest.raises(SystemExit, match=r"Run benchmarks/gpu_wheels\.sh where there is a network"):
        install.main()


@pytest.mark.parametrize("carried", ["the same", "others"])
def test_without_git_the_wheels_say_the_commit_and_other_code_is_changed(
    carried: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = source.digest() if carried == "the same" else "0"
    (tmp_path / source.MANIFEST).write_text(json.dumps({"commit": "abc", "changed": False, "code": code}))
    monkeypatch.setattr(source, "WHEELS", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert source.identity() == {"commit": "abc", "changed": carried == "others", "code": source.digest()}


def bench(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["bench", *words])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_a_dry_run_is_the_whole_road_and_is_no_figure(tmp_path: Path) -> None:
    claims, records = dry_run("train", "3,4,5", tmp_path)
    assert claims["G3.kill"]["ok"], claims["G3.kill"]
    assert claims["G3.kill"]["runs"] == [{"system": "steps that were repeated", "value": 1.0}]
    assert claims["G5.tokens"]["reasons"]["fmscale"].startswith("step 5 ")
    assert claims["T3.h200"]["reasons"]["fmscale"] == "step 6 was not asked for"
    [profile] = [one["profile"] for one in records if "profile" in one]
    assert (profile["steps"], profile["waits"]) == (3, None)
    assert [one["huge"] for one in records if one["about"] == "pages"] == [False, True]
    status, _, err = bench("--read", str(tmp_path))
    assert status != 0
    assert "these are the records of a dry run" in err


@pytest.mark.slow
def test_a_dry_run_of_the_kernels_measures_what_an_interpreter_can(tmp_path: Path) -> None:
    claims, records = dry_run("kernels", "", tmp_path)
    tests = [one for id, one in claims.items() if id.startswith("K.")]
    assert [one["id"] for one in tests] == ["K.kernels.test_swiglu"]
    ended = [run["outcome"] for run in tests[0]["runs"]]
    assert {"passed", "skipped"} == set(ended)
    assert len({run["system"] for run in tests[0]["runs"]}) == len(ended)  # each test in one share alone
    assert len(claims["A.forward E=64"]["peers"]) == 2
    assert claims["A.flush"]["ours"] > 0
    row = claims["B.forward causal E=64"]
    assert row["ours"] > 0
    assert row["peers"]["flash"] > 0
    alone, whole = (one for one in records if one["about"] == "row")
    assert (list(alone["rates"]), next(iter(whole["rates"]))) == (["ours"], "ours")


def dry_run(mode: str, only: str, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Claims by id, and the findings of the jobs."""
    script = str(ROOT / "benchmarks" / "gpu_hour.sh")
    command = [script, mode, "--dry-run", "--only", only, "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=560)
    assert ran.returncode == 0, ran.stdout
    status, told, err = bench("--read", str(out), "--dry-run", "--json")
    assert status == 0, err
    lines = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    return {claim["id"]: claim for claim in json.loads(told)}, [one["found"] for one in lines if one["kind"] == "found"]


@pytest.mark.slow
def test_a_kill_leaves_all_that_was_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_hour", "train", "--dry-run", "--only", "1"]
    driver = subprocess.Popen([*command, "--out", str(tmp_path), "--scratch", str(tmp_path)], cwd=ROOT)
    path = tmp_path / RESULTS
    try:
        while driver.poll() is None and not (path.is_file() and '"about": "deepspeed"' in path.read_text()):
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    status, out, err = bench("--read", str(tmp_path), "--dry-run", "--json")
    assert status == 0, err
    assert "the hour did not end by itself" in err
    claims = {claim["id"]: claim for claim in json.loads(out)}
    assert claims["G0.import"]["ours"] > 0
    assert claims["G1.order"]["reasons"]["fmscale"] == "the hour ended before step 1 did"
