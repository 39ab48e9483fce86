"""`fmscale dataset`: its output for users and scripts."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.store.datasets.dataset import create_or_open
from fmscale.store.open import open_store
from fmscale.store.segments.seal import segment_prefix
from tests.helpers.records import write_records
from tests.helpers.segments import documents, flip, write_commit


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store with two datasets, the first with two commits."""
    store = open_store(str(tmp_path / "store"))
    write_commit(store, "docs", {"train": [documents([5, 6])], "held_out": [documents([3])]}, bos=1)
    write_commit(store, "docs", {"train": [documents([7])]}, job="second", bos=1)
    write_commit(store, "code", {"train": [documents([9])]})
    return str(tmp_path / "store")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["dataset", *words])
    return result.exit_code, result.stdout, result.stderr


def test_list(root: str) -> None:
    status, out, _ = run("list", "--store", root)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["dataset", "code", "docs"]
    status, out, _ = run("list", "--store", root, "--json")
    code, docs = json.loads(out)
    assert (docs["dataset"], docs["commits"], docs["tokens"], docs["documents"]) == ("docs", 2, 21, 4)
    assert docs["splits"] == ["held_out", "train"]
    assert isinstance(code["bytes"], int)


def test_datasets_of_records_have_records_and_no_tokens(root: str) -> None:
    store = open_store(root)
    prefix = segment_prefix("photos", "0" * 32, 0, "train")
    seal = write_records(store, prefix, pa.table({"a": [1, 2, 3]}))
    create_or_open(store, "photos").append_commit(
        job="0" * 32, segments={"train": [(0, seal)]}, tokenizer=None, dtype="", kind="records"
    )
    found = {row["dataset"]: row for row in json.loads(run("list", root, "--json")[1])}
    assert (found["photos"]["kind"], found["photos"]["records"], found["docs"]["kind"]) == ("records", 3, "tokens")
    assert not {"documents", "tokens", "dtype", "tokenizer"} & found["photos"].keys()
    status, out, _ = run("show", f"{root}/photos")
    assert status == 0
    words = out.split()
    assert {"records", "3"} <= set(words)
    assert not {"documents", "tokens", "tokenizer", "dtype", "bos"} & set(words)
    status, out, _ = run("verify", f"{root}/photos")
    assert status == 0
    flip(store, f"{prefix}/batches/c/0/0", 3)
    status, out, _ = run("verify", f"{root}/photos", "--json")
    assert (status, [(p["object"], p["chunk"]) for p in json.loads(out)["problems"]]) == (
        1,
        [(f"{prefix}/batches/c/0/0", 0)],
    )


def test_list_of_an_empty_store(tmp_path: Path) -> None:
    open_store(str(tmp_path / "empty"))
    assert run("list", "--store", str(tmp_path / "empty"), "--json") == (0, "[]\n", "")
    status, out, _ = run("list", "--store", str(tmp_path / "empty"))
    assert status == 0
    assert "has no datasets" in out


def test_show(root: str) -> None:
    status, out, _ = run("show", "--store", root, "--dataset", "docs")
    assert status == 0
    assert "held_out" in out
    _, out, _ = run("show", "--store", root, "--dataset", "docs", "--commit", "1", "--json")
    (commit,) = json.loads(out)["commits"]
    assert (commit["number"], commit["bos"], commit["manifests"]["train"]["tokens"]) == (1, 1, 7)
    status, _, err = run("show", "--store", root, "--dataset", "dcos")
    assert status == 2
    assert "Did you mean docs" in err


def test_verify_says_what_is_bad_and_exits_with_1(root: str) -> None:
    status, out, err = run("verify", "--store", root, "--dataset", "docs")
    assert (status, err) == (0, "")
    assert "1 datasets, 2 commits" in out
    store = open_store(root)
    (key,) = [i.key for i in store.list_objects("datasets/docs") if i.key.endswith("held_out/tokens/c/0")]
    flip(store, key, 70)
    status, out, err = run("verify", "--store", root, "--dataset", "docs")
    assert status == 1
    assert key in out
    assert "1 problems" in err
    status, out, _ = run("verify", "--store", root, "--dataset", "docs", "--json")
    assert status == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert [(p["commit"], p["object"], p["chunk"]) for p in report["problems"]] == [(0, key, 0)]
    status, out, _ = run("verify", "--store", root, "--dataset", "docs", "--commit", "1", "--json")
    assert (status, json.loads(out)["ok"], json.loads(out)["commits"]) == (0, True, {"docs": [1]})
    status, out, _ = run("verify", "--store", root, "--json")
    assert (status, json.loads(out)["commits"]) == (1, {"code": [0], "docs": [0, 1]})
    status, _, err = run("verify", "--store", root, "--commit", "1")
    assert (status, "--dataset" in err) == (2, True)


def test_a_missing_store_says_so(tmp_path: Path) -> None:
    status, _, err = run("list", "--store", str(tmp_path / "none"))
    assert status == 2
    assert "remedy" in err
