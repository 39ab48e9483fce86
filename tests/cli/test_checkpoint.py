"""`fmscale checkpoint` on absent or incomplete checkpoints: the command line's terms, and the nearest name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a run without checkpoints."""
    url = str(tmp_path / "store")
    Log(open_store(url), "runs/demo", RUN_KINDS).append("stage", {}, lease=0)
    return url


def checkpoint(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["checkpoint", *words])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("verb", ["list", "show", "verify"])
def test_a_run_that_is_not_there(store: str, verb: str) -> None:
    status, output = checkpoint(verb, f"{store}#dmo")
    assert status == 2
    assert "has no run of this name" in output
    assert "Did you mean demo?" in output


def test_a_run_without_checkpoints(store: str) -> None:
    status, output = checkpoint("list", f"{store}#demo")
    assert (status, output) == (0, f"file://{store} has no checkpoints of run demo.")
    status, output = checkpoint("show", f"{store}#demo")
    assert status == 2
    assert "`fmscale train` saves one every checkpoint.every steps" in output


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    status, output = checkpoint("list", str(tmp_path / "nowhere"))
    assert status == 2
    assert "`fmscale ingest` and `fmscale train` make a store that is not there" in output
    assert not (tmp_path / "nowhere").exists()
