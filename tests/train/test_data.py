"""What the data section says reaches the loader."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import BatchShape, load_config
from fmscale.data.provenance.delivery import document_bytes
from fmscale.errors import ConfigError
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from fmscale.train.data import open_training
from tests.helpers.corpus import T, store_corpus


def seen(path: Path, *overrides: str) -> set[bytes]:
    """Ids of the documents in the first 150 steps of the run."""
    config = load_config(str(path), (f"store.url={path.parent / 'store'}", "train.record_delivery=true", *overrides))
    backend = open_store(config.store.url)
    shares = BatchShape(global_batch=4, micro_batch=4, accumulation=1, dp_size=1)
    with open_training(config, backend, World(), shares, lease=0) as loader:
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
