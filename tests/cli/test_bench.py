"""`fmscale bench`: names, and the options of the kernels' command."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fmscale.cli.main import build_app

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["bench", *words])
    return result.exit_code, result.stdout, result.stderr


def test_unknown_names_are_refused() -> None:
    status, _, err = run("kernel")
    assert status == 2
    assert "One of: loader," in err


def test_list_says_what_serves_each_op_here() -> None:
    status, out, _ = run("kernels", "--list")
    assert status == 0
    assert out.startswith("device ")
    assert "  attention: " in out


@no_gpu
def test_without_a_gpu_nothing_is_measured_and_the_status_says_so() -> None:
    status, out, err = run("kernels", "--quick", "--json")
    assert status == 2
    assert all(claim["ours"] is None for claim in json.loads(out)["claims"])
    assert json.loads(out)["quick"] is True
    assert "nothing was measured: no CUDA device" in err


@no_gpu
def test_tune_needs_a_gpu() -> None:
    status, out, err = run("kernels", "--tune")
    assert (status, out) == (2, "")
    assert "nothing was tuned: no CUDA device" in err


def test_the_tuners_options_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run_command(options: list[str]) -> int:
        seen.extend(options)
        return 0

    monkeypatch.setattr("benchmarks.kernels.run_command", run_command)
    status, _, _ = run("kernels", "--tune", "--only", "-x|attention .*E128", "--seconds", "60", "--again")
    assert status == 0
    assert seen == ["--tune", "--again", "--only=-x|attention .*E128", "--seconds=60.0"]


def test_the_tuners_options_reach_nothing_else() -> None:
    for words in (("kernels", "--seconds", "3"), ("kernels", "--again"), ("loader", "--tune", "--again")):
        status, _, err = run(*words)
        assert status == 2
        assert "Use `fmscale bench kernels --tune`" in err


def test_other_benchmarks_neither_list_nor_tune() -> None:
    for option in ("--list", "--tune"):
        status, _, err = run("loader", option)
        assert status == 2
        assert "loader has no --list or --tune" in err


def test_only_chooses_claims_of_the_loader() -> None:
    status, _, err = run("loader", "--only", "W7")
    assert status == 2
    assert "no claim of this benchmark has that name" in err
    for name in ("train", "kernels"):
        status, _, err = run(name, "--only", "W5")
        assert status == 2
        assert f"{name} is measured as a whole" in err


def test_reading_takes_a_folder_and_neither_a_name_nor_the_options_of_others(tmp_path: Path) -> None:
    status, _, err = run("--read", str(tmp_path))
    assert status != 0
    assert "no records of a GPU hour here" in err
    for words in (("loader", "--read", "x"), ("--read", "x", "--quick"), ("loader", "--dry-run")):
        status, _, err = run(*words)
        assert status == 2
        assert "Use `fmscale bench --read FOLDER`" in err
