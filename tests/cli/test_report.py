"""`fmscale report` for a user: the page and its place, JSON, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from tests.helpers.told_runs import killed_and_resumed


def report(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["report", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_the_page_of_a_run_is_in_its_folder_and_of_several_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = (killed_and_resumed(tmp_path / name / "run") for name in ("one", "two"))
    status, out, _ = report(one)
    assert (status, out.splitlines()) == (0, ["run: 6 steps, goodput 31.9%", str(one / "report.html")])
    assert (one / "report.html").read_text().startswith("<!doctype html>")
    monkeypatch.chdir(tmp_path)
    status, out, _ = report("one/run", "two/run", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["page"], [run["run"] for run in found["runs"]]) == ("report.html", ["one/run", "two/run"])
    assert found["runs"][1]["seconds"]["down"] == 6.0
    assert "one/run" in (tmp_path / "report.html").read_text()


def test_what_is_no_run_and_a_page_that_cannot_be_written_and_too_many_runs_are_refused(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path / "run")
    for words, cause, found in (
        ((tmp_path / "nothing",), "no metrics of a run here", "nothing/metrics.jsonl: No such file"),
        ((run, "--to", tmp_path / "no" / "page.html"), "the report cannot be written", "page.html: No such file"),
        ((run,) * 7, "too many", "7 runs"),
    ):
        status, _, err = report(*words)
        assert status == 2
        assert cause in err
        assert found in err
        assert "remedy:" in err


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from fmscale.cli.main import build_app; build_app()(standalone_mode=False);"
    code += "print([m for m in ('torch', 'pyarrow', 'deepspeed') if m in sys.modules])"
    words = [sys.executable, "-c", code, "report", str(killed_and_resumed(tmp_path / "run"))]
    assert subprocess.check_output(words, text=True).splitlines()[-1] == "[]"
