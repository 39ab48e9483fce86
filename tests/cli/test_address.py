"""Addresses on the command line: STORE/DATASET and STORE#RUN[@STEP], or options; config keys as KEY=VALUE."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.address import find_dataset, find_run, find_store
from fmscale.cli.main import build_app
from fmscale.errors import ConfigError
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.helpers.segments import documents, write_commit


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("runs/store/docs", None, None), ("runs/store", "docs")),
        (("runs/store/docs/", None, None), ("runs/store", "docs")),
        (("s3://b/p/docs?region=x", None, None), ("s3://b/p?region=x", "docs")),
        (("memory://m/docs", None, None), ("memory://m", "docs")),
        ((None, None, "runs/store/docs"), ("runs/store", "docs")),
        ((None, "runs/store", "docs"), ("runs/store", "docs")),
    ],
)
def test_a_dataset(given: tuple[str | None, str | None, str | None], found: tuple[str, str]) -> None:
    assert find_dataset(*given) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("runs/store#demo", None, None), ("runs/store", "demo", None)),
        (("s3://b/p?region=x#demo@3", None, None), ("s3://b/p?region=x", "demo", 3)),
        ((None, None, "runs/store#demo"), ("runs/store", "demo", None)),
        ((None, "runs/store", "demo"), ("runs/store", "demo", None)),
    ],
)
def test_a_run(given: tuple[str | None, str | None, str | None], found: tuple[str, str, int | None]) -> None:
    assert find_run(*given) == found


@pytest.mark.parametrize("given", [("docs", None, None), ("s3://docs", None, None), (None, "store", None)])
def test_what_is_no_dataset_is_refused(given: tuple[str | None, str | None, str | None]) -> None:
    with pytest.raises(ConfigError, match="not the address of a dataset") as caught:
        find_dataset(*given)
    assert "STORE/DATASET, such as runs/store/docs" in caught.value.remedy


def test_what_is_no_run_is_refused_and_nothing_may_be_told_twice_or_not_at_all() -> None:
    for step in ("0", "entry3"):
        with pytest.raises(ConfigError, match="not a step of a run"):
            find_run(f"store#run@{step}", None, None)
    with pytest.raises(ConfigError, match="told twice"):
        find_run("store#run", "store", "run")
    with pytest.raises(ConfigError, match="told twice") as caught:
        find_store("s3://b?secret_access_key=hush", "store")
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="not told where") as caught:
        find_store(None, None)
    assert caught.value.remedy == "Give STORE, or --store STORE."


def fmscale(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), list(words))
    return result.exit_code, " ".join(result.output.split())


def test_every_dataset_verb_takes_addresses_and_options_alike(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store = open_store(url)
    write_commit(store, "docs", {"train": [documents([5, 6])]})
    write_commit(store, "code", {"train": [documents([9])]})
    for address, options in [
        (("list", url), ("list", "--store", url)),
        (("show", f"{url}/docs"), ("show", "--store", url, "--dataset", "docs")),
        (("verify", url), ("verify", "--store", url)),
        (("verify", f"{url}/docs"), ("verify", "--dataset", f"{url}/docs")),
        (("mask", f"{url}/docs", "--source", "*"), ("mask", "--store", url, "--dataset", "docs", "--source", "*")),
    ]:
        status, told = fmscale("dataset", *address)
        assert (status, told) == fmscale("dataset", *options)
        assert status == 0, told
    assert "2 datasets" in fmscale("dataset", "verify", url)[1]
    assert "1 datasets" in fmscale("dataset", "verify", f"{url}/docs")[1]
    (tmp_path / "store" / "dcos").mkdir()  # as on an object store, where any address could be an empty store
    for verb in ("show", "verify"):
        assert "Did you mean docs" in fmscale("dataset", verb, f"{url}/dcos")[1]


def test_verbs_that_take_a_run(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    Log(open_store(url), "runs/demo", RUN_KINDS).append("stage", {}, lease=0)
    for verb, *rest in [("trace", "--step", "3"), ("audit", "record.arrow")]:
        for named in (f"{url}#dmo",), ("--store", url, "--run", "dmo"), ("--run", f"{url}#dmo"):
            status, told = fmscale("dataset", verb, *named, *rest)
            assert (status, "Did you mean demo?" in told) == (2, True)
    assert "Did you mean demo?" in fmscale("dataset", "trace", f"{url}#dmo@3")[1]
    assert "audited as a whole" in fmscale("dataset", "audit", f"{url}#demo@3", "record.arrow")[1]
    assert "--document its steps" in fmscale("dataset", "trace", f"{url}#demo@3", "--document", "0")[1]
    assert "--document its steps" in fmscale("dataset", "trace", f"{url}#demo@3", "--step", "4")[1]


@pytest.mark.parametrize("verb", ["train", "plan", "launch"])
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--steps", "3"], "remedy: Write train.steps=3."),
        (["--steps=3"], "remedy: Write train.steps=3."),
        (["--optimizer.lr", "1e-3"], "remedy: Write optimizer.lr=1e-3."),
        (["--zero-stage", "--help"], "remedy: Write train.zero_stage=VALUE."),
        (["--every", "5"], "remedy: Write checkpoint.every=5 or evaluation.every=5."),
        (["--stpes", "3"], "No such option: --stpes"),
    ],
)
def test_an_option_that_is_a_config_key_is_answered_with_the_way_to_set_it(
    verb: str, words: list[str], remedy: str
) -> None:
    status, told = fmscale(verb, "run/laptop", *words)
    assert status == 2
    assert remedy in told


def test_a_shell_completes_verbs_without_anything_slow() -> None:
    code = "import sys, atexit; from fmscale.cli.main import build_app; atexit.register(lambda: "
    code += "print(sorted({'torch', 'numpy', 'pyarrow', 'yaml'} & set(sys.modules)))); build_app()(prog_name='fmscale')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_FMSCALE_COMPLETE": "complete_bash", "COMP_WORDS": "fmscale dataset ver", "COMP_CWORD": "2"},
        text=True,
        capture_output=True,
    )
    assert done.stdout.split() == ["verify", "[]"]


@pytest.mark.parametrize(
    "words",
    [
        ["dataset", "trace", "s#r@99999999999999999999"],
        ["dataset", "trace", "s#r", "--step", "99999999999999999999"],
        ["generate", "s#r", "hello", "--threads", "99999999999999999999"],
    ],
)
def test_numbers_beyond_any_run_are_refused(words: list[str]) -> None:
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
