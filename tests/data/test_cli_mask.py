"""`fmscale dataset mask` from the command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.views.record_view import make_record_view
from fmscale.data.views.token_view import make_view
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset, open_dataset
from tests.helpers.record_datasets import record_dataset
from tests.helpers.records import record_id
from tests.helpers.segments import Document, documents, write_commit


@pytest.fixture
def corpus(local_store: Backend) -> tuple[Dataset, list[Document]]:
    content = documents([5, 9, 30, 2, 40])
    write_commit(local_store, "corpus", {"train": [content]})
    return open_dataset(local_store, "corpus"), content


def run(dataset: Dataset, *arguments: str) -> tuple[int, str]:
    path = dataset.backend.local_path("x")
    assert path is not None
    base = ["dataset", "mask", "--store", str(path.parent), "--dataset", "corpus", "--json"]
    result = CliRunner().invoke(build_app(), [*base, *arguments])
    return result.exit_code, result.output


def kept(dataset: Dataset, output: str) -> int:
    return make_view(dataset, sequence_length=4, masks=[json.loads(output)["mask"]]).tokens[0]


def test_by_id_and_by_file(corpus: tuple[Dataset, list[Document]], tmp_path: Path) -> None:
    dataset, content = corpus
    names = [content[i].id.hex() for i in (1, 4)]
    code, by_option = run(dataset, "--id", names[0], "--id", names[1])
    (tmp_path / "ids").write_text("\n".join(names) + "\n\n")
    _, by_file = run(dataset, "--ids", str(tmp_path / "ids"))
    assert code == 0
    assert json.loads(by_option) == json.loads(by_file)
    assert json.loads(by_option)["documents"] == 2
    assert json.loads(by_option)["tokens"] == 49
    assert kept(dataset, by_option) == 86 - 49


def test_by_source(corpus: tuple[Dataset, list[Document]]) -> None:
    dataset, content = corpus
    code, output = run(dataset, "--source", "docs/*.md")
    assert code == 0
    left = np.concatenate([doc.tokens for doc in content if not doc.source.startswith("docs/")])
    assert kept(dataset, output) == len(left)


def test_records_by_id_and_by_source(local_store: Backend) -> None:
    dataset = record_dataset(local_store, "corpus", [pa.table({"n": list(range(5))}), pa.table({"n": list(range(3))})])
    code, output = run(dataset, "--id", record_id(2).hex(), "--id", record_id(10**6).hex())
    assert code == 0
    named = json.loads(output)
    assert {**named, "mask": ""} == {"mask": "", "split": "train", "records": 2}
    assert make_record_view(dataset, spec="{}", masks=[named["mask"]]).records == (6,)
    code, output = run(dataset, "--source", "0.*")
    assert (code, json.loads(output)["records"]) == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either by id or by source"),
        (["--id", "00" * 16, "--source", "x"], "either by id or by source"),
        (["--id", "zz"], "32 hexadecimal digits"),
        (["--id", "00" * 16], "not in the split train"),
        (["--source", "nothing/*"], "no document is to be masked"),
        (["--ids", "/nowhere/ids"], "cannot be read"),
    ],
)
def test_errors_say_what_to_change(corpus: tuple[Dataset, list[Document]], arguments: list[str], message: str) -> None:
    code, output = run(corpus[0], *arguments)
    assert code == 2
    assert message in output
    assert "Traceback" not in output
