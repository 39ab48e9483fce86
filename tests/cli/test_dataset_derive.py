"""`fmscale dataset derive`: sizes by --spec and by --config, their summary, and refusals."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config.spec import TextSpec
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import make_spec, size_text
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from tests.helpers.record_datasets import record_dataset
from tests.helpers.records import record_id
from tests.helpers.segments import documents, write_commit

SPEC = "{kind: text, field: text, tokenizer: bytes}"
CONFIG = """
data:
  sources:
    - {dataset: docs, spec: {kind: text, tokenizer: bytes, too_long: cut}}
    - {dataset: docs, weight: 2, spec: {kind: text, tokenizer: bytes, eos: false}}
    - {dataset: others}
  spec: {kind: text, tokenizer: bytes}
batch: {global_batch: 4, forward_tokens: 64}
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store with two datasets of records."""
    store = open_store(str(tmp_path / "store"))
    record_dataset(store, "docs", [pa.table({"text": ["a" * 5, "", None, "b" * 300]})])
    record_dataset(store, "others", [pa.table({"text": ["abc"]})])
    return str(tmp_path / "store")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["dataset", *words])
    return result.exit_code, result.stdout, result.stderr


def test_the_sizes_of_a_spec(root: str) -> None:
    status, out, err = run("derive", f"{root}/docs", "--column", "size", "--spec", SPEC, "--workers", "1")
    assert status == 0, err
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert {name: lines[name] for name in ("records", "tokens", "largest", "empty")} == {
        "records": ["4"],
        "tokens": ["305"],
        "largest": ["300"],
        "empty": ["1"],
    }
    assert f"bad: {record_id(2).hex()}: the record has no text in text (NoneType)" in out
    assert lines["256"] == ["to", "511", "1"]
    assert "delete datasets/docs/columns/" in err
    status, again, _ = run("derive", "--store", root, "--dataset", "docs", "--spec", SPEC)
    assert (status, "docs has this column already" in again) == (0, True)
    _, text, _ = run("derive", f"{root}/docs", "--spec", SPEC, "--json")
    (told,) = json.loads(text)
    assert (told["dataset"], told["split"], told["new"], told["tokens"]) == ("docs", "train", False, 305)
    assert run("show", f"{root}/docs")[1].split()[-1] == "size"
    (commit,) = json.loads(run("show", f"{root}/docs", "--json")[1])["commits"]
    assert commit["columns"] == {"train": ["size"]}


def test_the_sizes_of_a_config(root: str, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(CONFIG)
    status, text, err = run("derive", f"{root}/docs", "--config", str(tmp_path / "train.yaml"), "--json")
    assert status == 0, err
    assert [told["tokens"] for told in json.loads(text)] == [305, 303]
    store = open_store(root)
    manifest = open_dataset(store, "docs").commits()[0].manifests["train"]
    for eos, tokens in ((True, 300), (False, 299)):
        spec = make_spec(TextSpec(tokenizer="bytes", eos=eos), store, limit=64)
        column = open_column(store, column_key("docs", manifest.digest, SIZE, size_text(spec)))
        assert column is not None
        assert column.part(0)[3] == tokens
    status, text, _ = run("derive", f"{root}/others", "--config", str(tmp_path / "train.yaml"), "--json")
    assert [told["tokens"] for told in json.loads(text)] == [3]


def test_requests_that_cannot_be_met_are_refused(root: str, tmp_path: Path) -> None:
    write_commit(open_store(root), "tokens", {"train": [documents([5])]})
    (tmp_path / "train.yaml").write_text(CONFIG)
    config = ("--config", str(tmp_path / "train.yaml"))
    for words, told in (
        (("docs", "--spec", SPEC, "--column", "sizes"), "no such column can be derived"),
        (("docs",), "Give either --spec or --config"),
        (("docs", "--spec", SPEC, *config), "Give either --spec or --config"),
        (("docs", "--spec", "null"), "--spec is empty"),
        (("docs", "--spec", "{kind: txt}"), "text"),
        (("docs", "--spec", "{kind: text, fild: a}"), "Did you mean field?"),
        (("docs", "--spec", "{kind: text, field: txt, tokenizer: bytes}"), "Did you mean text?"),
        (("docs", "--spec", "{kind: text}"), "needs a tokenizer"),
        (("docs", "--split", "heldout", "--spec", SPEC), "no records in the split heldout"),
        (("tokens", "--spec", SPEC), "no records in the split train of dataset tokens"),
        (("dcos", "--spec", SPEC), "Did you mean docs?"),
        (("tokens", *config), "is the dataset tokens"),
        (("docs", "--split", "heldout", *config), "is the dataset docs with split heldout"),
    ):
        status, _, err = run("derive", f"{root}/{words[0]}", *words[1:])
        assert (status, told in err) == (2, True), (words, err)
    assert run("derive", str(tmp_path / "no/docs"), "--spec", SPEC)[0] == 2
    assert not (tmp_path / "no").exists()


def test_ingest_of_records_derives_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": "a" * i, "n": i}) + "\n" for i in range(1, 41)))
    place = [str(tmp_path / "in.jsonl"), "--dataset", str(tmp_path / "store/docs"), "--workers", "1"]

    def ingest(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(build_app(), ["ingest", *place, *words])
        return result.exit_code, result.stdout, result.stderr

    status, _, err = ingest("--spec", SPEC)
    assert (status, "Add --as records" in err) == (2, True)
    status, _, err = ingest("--as", "records", "--spec", "{kind: text, fild: text}")
    assert (status, "Did you mean field?" in err, (tmp_path / "store/datasets").exists()) == (2, True, False)
    status, text, err = ingest("--as", "records", "--heldout", "0.2", "--spec", SPEC, "--json")
    assert status == 0, err
    told = json.loads(text)
    assert told["new"]
    assert {size["split"] for size in told["sizes"]} == {"train", "heldout"}
    assert sum(size["tokens"] for size in told["sizes"]) == sum(range(1, 41))
    status, text, _ = ingest("--as", "records", "--heldout", "0.2", "--spec", SPEC)
    assert (status, text.count("nothing was done")) == (0, 3)
