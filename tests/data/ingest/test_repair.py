"""Datasets from before the ledger: they can be read, added to, verified and repaired."""

import json
import os
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.ingest import IngestResult, ingest
from fmscale.data.ingest.ledger import ledger_key, load_ledger
from fmscale.data.ingest.plan import document_id
from fmscale.data.ingest.repair import find_doubles, mask_doubles, read_stock
from fmscale.data.views.mask import load_mask
from fmscale.errors import CorruptData, DataError, FormatError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.digest import metadata_digest
from fmscale.store.open import open_store
from tests.data.ingest.corpora import lines, put
from tests.data.ingest.test_additions import fates, held, run
from tests.fixtures.make_dataset_before import LINES, corpus
from tests.fixtures.make_format_version import FOLDER


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A store with a dataset of before, and the folder `in` as it was when it was made."""
    with zipfile.ZipFile(FOLDER / "dataset_before_ledger.zip") as archive:
        archive.extractall(tmp_path / "store")
    corpus(tmp_path / "in", 2)
    return tmp_path


def command(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(build_app(), [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def opened(folder: Path) -> Dataset:
    return open_dataset(open_store(str(folder / "store")), "d")


def test_a_dataset_of_before_is_added_to(before: Path) -> None:
    known = run(before / "in", before / "store")
    assert (known.new, fates(known)) == (False, {"known": 14})
    assert fates(run(before / "in/a.jsonl", before / "store")) == {"known": 1}
    assert fates(run(before, before / "store")) == {"known": 14}, "from another folder"
    put(before / "in/new.jsonl", lines(["a new line"]))
    with pytest.raises(DataError, match="another share of its documents"):
        run(before / "in", before / "store", heldout=0.1)
    assert fates(run(before / "in", before / "store")) == {"known": 14, "added": 1}
    put(before / "in/3.md", "another text")
    os.utime(before / "in/3.md")
    with pytest.raises(DataError, match="1 file has another content"):
        run(before / "in", before / "store")
    assert fates(run(before / "in", before / "store", replace=True)) == {"known": 14, "replaced": 1}
    split = "heldout" if int.from_bytes(document_id("3.md", 0)[:8], "big") < int(0.4 * 2**64) else "train"
    found = {
        name: [text for source, _, text in texts if source == "3.md"] for name, texts in held(before / "store").items()
    }
    assert found == {"train": [], "heldout": [], split: ["another text"]}, "it keeps the split of its name"
    assert fates(run(before / "in", before / "store")) == {"known": 15}


def test_repair_masks_what_is_there_twice_or_in_both_splits(before: Path) -> None:
    store = f"{before}/store/d"
    assert command("dataset", "verify", store)[0] == 1
    split_before = held(before / "store")
    both = {text for *_, text in split_before["train"]} & {text for *_, text in split_before["heldout"]}
    assert len(both) > 20
    assert max(Counter(key for texts in split_before.values() for key in texts.elements()).values()) > 1
    size = len(list((before / "store").rglob("*")))
    code, said = command("dataset", "repair", store, "--dry-run")
    assert (code, said["masks"], len(list((before / "store").rglob("*")))) == (0, {}, size)
    code, done = command("dataset", "repair", store)
    assert {key: done[key] for key in ("straddling", "repeated", "again")} == {
        key: said[key] for key in ("straddling", "repeated", "again")
    }
    now = held(before / "store")
    wanted = Counter(["a line before", *LINES, *(f"text {i}" for i in range(12)), "one more text"])
    assert Counter(text for texts in now.values() for *_, text in texts.elements()) == wanted
    assert {text for *_, text in now["train"]} & {text for *_, text in now["heldout"]} == set()
    kept = {text for *_, text in split_before["heldout"]}
    assert {text for *_, text in now["heldout"]} < kept, "what was held out stays held out"
    assert len(kept) - len(now["heldout"]) == 4, "but lines whose ids a later line has"
    assert command("dataset", "verify", store)[0] == 0
    again = command("dataset", "repair", store)[1]
    assert (again["masks"], again["straddling"], again["repeated"], again["again"]) == ({}, 0, 0, 0)


def test_repair_leaves_copies_that_files_really_hold(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(["copy", "copy", "text"]))
    put(tmp_path / "in/b.jsonl", lines(["copy"]))
    run(tmp_path / "in", tmp_path / "store", heldout=0.5)
    put(tmp_path / "in/a.jsonl", lines(["copy", "copy", "text", "copy"]))
    run(tmp_path / "in", tmp_path / "store")
    dataset = opened(tmp_path)
    stock = read_stock(dataset, contents=True)
    assert mask_doubles(dataset, stock, find_doubles(stock)) == {}
    assert len(stock.split) == 5


def records(folder: Path, share: float) -> IngestResult:
    return ingest(
        [str(folder / "in")], store=str(folder / "store"), dataset="d", kind="records", heldout=share, workers=1
    )


def test_records_are_compared_by_their_columns(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", "".join(json.dumps({"a": i % 5, "b": [i % 5]}) + "\n" for i in range(50)))
    records(tmp_path, 0.5)
    dataset = opened(tmp_path)
    stock = read_stock(dataset, contents=True)
    assert sorted(Counter(stock.content.tolist()).values()) == [10] * 5
    doubles = find_doubles(stock)
    assert (len(doubles.straddling), len(doubles.repeated)) == (0, 0)


def test_verify_reads_ledgers_and_masks(tmp_path: Path) -> None:
    put(tmp_path / "in/a.md", "first")
    put(tmp_path / "in/b.md", "other")
    run(tmp_path / "in", tmp_path / "store")
    put(tmp_path / "in/a.md", "FIRST")
    run(tmp_path / "in", tmp_path / "store", replace=True)
    dataset = opened(tmp_path)
    assert verify_dataset(dataset.backend, dataset) == []
    chosen = [*tmp_path.glob("store/datasets/d/segments/*/files.arrow"), *tmp_path.glob("store/datasets/d/masks/*")]
    assert len(chosen) == 3
    for path in chosen:
        data = path.read_bytes()
        path.write_bytes(data[:-9] + b"\0" + data[-8:])
        assert [problem.key for problem in verify_dataset(dataset.backend, dataset)] == [
            str(path.relative_to(tmp_path / "store"))
        ]
        path.write_bytes(data)


def test_the_command_adds_what_is_new_and_refuses_what_changed(tmp_path: Path) -> None:
    put(tmp_path / "in/a.md", "first")
    command("ingest", f"{tmp_path}/in", "--store", f"{tmp_path}/store", "--dataset", "d", "--tokenizer", "bytes")
    put(tmp_path / "in/a.md", "FIRST")
    put(tmp_path / "in/b.md", "other")
    ingest_again = ["ingest", f"{tmp_path}/in", "--dataset", f"{tmp_path}/store/d"]
    said = CliRunner().invoke(build_app(), [*ingest_again, "--dry-run"])
    assert (said.exit_code, "files, changed  1: a.md" in said.stdout) == (0, True)
    said = CliRunner().invoke(build_app(), ingest_again)
    assert (said.exit_code, "found:  a.md" in said.output) == (2, True)
    assert "files, added    1: b.md" in said.stdout
    assert command(*ingest_again, "--replace")[0] == 0
    shown = command("dataset", "show", f"{tmp_path}/store/d")[1]
    assert len(shown["commits"]) == 3
    assert command("dataset", "list", f"{tmp_path}/store")[1][0]["masked"] == 1


@pytest.mark.parametrize("columns", [{}, {"source": ["a"]}, {"source": [1], "stamp": [None]}])
@pytest.mark.parametrize("header", [None, b"{}", b'{"format_version": 1}'])
def test_foreign_tables_under_a_right_digest_are_damage(
    tmp_path: Path, columns: dict[str, Any], header: bytes | None
) -> None:
    put(tmp_path / "in/a.md", "first")
    run(tmp_path / "in", tmp_path / "store")
    sink = pa.BufferOutputStream()
    table = pa.table(columns).replace_schema_metadata({"fmscale": header} if header else None)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    dataset = opened(tmp_path)
    (commit,) = dataset.commits()
    for key, load in (
        (f"datasets/d/masks/{metadata_digest(data)}.arrow", lambda digest: load_mask(dataset.backend, "d", digest)),
        (ledger_key("d", commit.job), lambda digest: load_ledger(dataset.backend, "d", [with_ledger(commit, digest)])),
    ):
        dataset.backend.put(key, data)
        with pytest.raises((CorruptData, FormatError)):
            load(metadata_digest(data))


def with_ledger(commit: Commit, digest: str) -> Commit:
    extra = {"ingest": {**commit.body["extra"]["ingest"], "ledger": digest}}
    return replace(commit, body={**commit.body, "extra": extra})
