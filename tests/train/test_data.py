"""Settings of the data section reach the loader."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import BatchShape, load_config
from fmscale.data.ingest import ingest
from fmscale.data.provenance.delivery import document_bytes
from fmscale.errors import ConfigError
from fmscale.runtime.axes import Axis
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from fmscale.train.data import open_training
from fmscale.train.preflight.preflight import check_run
from fmscale.train.run import run_training
from tests.helpers.corpus import T, store_corpus
from tests.train.runs import make_corpus, write_config


def seen(path: Path, *overrides: str) -> set[bytes]:
    """Ids of the documents in the first 150 steps of the run."""
    config = load_config(str(path), (f"store.url={path.parent / 'store'}", "train.record_delivery=true", *overrides))
    backend = open_store(config.store.url)
    shares = BatchShape(global_batch=4, micro_batch=4, accumulation=1, dp_size=1)
    with open_training(config, backend, World(), Axis(), shares, lease=0) as loader:
        batches = [next(loader) for _ in range(150)]
    return {document_bytes(span.document) for batch in batches for span in batch.spans}


def test_a_mask_made_on_the_command_line_takes_documents_out_of_a_run(tmp_path: Path) -> None:
    corpus = store_corpus(open_store(str(tmp_path / "store")))
    out = [document.id for document in corpus.commits[0][100:300]]
    (tmp_path / "ids").write_text("\n".join(one.hex() for one in out))
    place = ["--store", str(tmp_path / "store"), "--dataset", "corpus"]
    made = CliRunner().invoke(build_app(), ["dataset", "mask", *place, "--ids", str(tmp_path / "ids"), "--json"])
    mask = json.loads(made.stdout)["mask"]
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {{sequence_length: {T - 1}, sources: [{{dataset: corpus, masks: [{mask}]}}]}}\ntrain: {{run: masked}}\n"
    )
    assert not seen(path) & set(out)
    path.write_text(f"data: {{sequence_length: {T - 1}, sources: [{{dataset: corpus}}]}}\n")
    assert seen(path, "train.run=whole") & set(out)
    with pytest.raises(ConfigError, match="run masked was recorded with other data") as caught:
        seen(path, "train.run=masked")
    assert caught.value.found == f"data.sources.0.masks: recorded ['{mask}'], asked for []"


def test_memory_that_holds_no_step_is_refused_before_and_at_the_start_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is read at random lies in many units. " * 35_000)
    ingest([str(tmp_path / "a.txt")], store=str(tmp_path / "store"), dataset="corpus", tokenizer="bytes", workers=1)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"store: {{url: {tmp_path / 'store'}}}\n"
        "data: {sequence_length: 64, memory_bytes: 1_048_576, sources: [{dataset: corpus}]}\n"
        f"batch: {{global_batch: 64, micro_batch: 64}}\ntrain: {{run: little, steps: 1, folder: {tmp_path}}}\n"
    )
    config = load_config(str(path))
    [problem] = check_run(config, 1).problems
    assert re.search(
        r"run\.yaml:2: data\.memory_bytes is too little: one step of this rank needs \d+ units", str(problem)
    )
    assert problem.remedy == "Raise data.memory_bytes 5-fold."
    assert problem.found == 1_048_576
    with pytest.raises(ConfigError, match=re.escape(str(problem))):
        run_training(config, show=print, event=print)
    assert check_run(load_config(str(path), ("data.memory_bytes=8_388_608",)), 1).problems == []


def test_memory_that_the_machine_refuses_is_named_in_the_plan(tmp_path: Path) -> None:
    path = write_config(tmp_path, make_corpus(tmp_path))
    [problem] = check_run(load_config(path, ("data.memory_bytes=4611686018427387904",)), 1).problems
    assert "data.memory_bytes is more than this machine can give" in problem.cause
