"""Supervised fine-tuning on rendered chats: packed as one by one, on trained tokens alone, beside pretraining data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.checkpoint.checkpoint import open_in
from fmscale.config import load_config
from fmscale.config.spec import RenderedSpec
from fmscale.data.ingest import ingest
from fmscale.data.samples.protocol import Draw
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import make_spec, open_spec, size_text, spec_text
from fmscale.errors import ConfigError, DataError
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.templates import load_template
from fmscale.store.open import open_store
from fmscale.train.data import chat_facts, training_sources
from tests.helpers.chats import (
    chat,
    ingest_messages,
    rendered,
    tokenizer_json,
    tokenizer_of,
    write_lines,
)
from tests.helpers.chats import (
    template_of as family_template,
)
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, steps_of, train_here

CONFIG = """
store: {{url: {store}}}
data: {{memory_bytes: 8_388_608, sources: [{{dataset: chats.r}}]}}
model: {{num_layers: 2, dim: 32, num_heads: 2, num_kv_heads: 1, max_seq_len: 256}}
batch: {{global_batch: 16, forward_tokens: 512}}
train: {{run: run, folder: {folder}, steps: 6, log_every: 1, precision: fp32, device: cpu}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: 0.003}}
evaluation: {{sets: [{{dataset: chats.r, split: heldout, rows: 8}}]}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chats")
    url = str(folder / "store")
    talks = [{"messages": chat(f"{i} + {i % 7}", str(i + i % 7), "again " * (i % 9 + 7), str(i))} for i in range(120)]
    ingest_messages(url, "chats", write_lines(folder / "chats.jsonl", talks), heldout=0.2)
    rendered(url, "chats", "chats.r")
    (folder / "tokenizer.json").write_bytes(tokenizer_json("llama3"))
    for i in range(20):
        (folder / f"prose/{i}.txt").parent.mkdir(exist_ok=True)
        (folder / f"prose/{i}.txt").write_text(f"the capital of France is Paris, number {i}. " * 20)
    ingest(
        [str(folder / "prose")],
        store=url,
        dataset="prose",
        tokenizer=str(folder / "tokenizer.json"),
        eos=False,
        workers=1,
    )
    return url


def train(store: str, folder: Path, name: str, size: int, *overrides: str) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(store=store, folder=folder))
    run_ranks(train_here, size, str(path), (*overrides, f"train.run={name}"), timeout=120)
    steps = steps_of(folder / name)
    return [steps[step] for step in sorted(steps)]


def sizes_of(store: str) -> list[int]:
    """Sizes of the samples of chats.r."""
    backend = open_store(store)
    text = size_text(make_spec(RenderedSpec(), backend, limit=512))
    [commit] = open_dataset(backend, "chats.r").commits()
    columns = [open_column(backend, column_key("chats.r", m.digest, SIZE, text)) for m in commit.manifests.values()]
    return [size for one in columns if one for size in one.take(np.arange(one.records, dtype=np.uint64)).tolist()]


def test_packed_on_two_ranks_is_one_sample_a_forward(store: str, tmp_path: Path) -> None:
    assert all(64 < tokens <= 128 for tokens in sizes_of(store)), "two samples do not fit into a forward of 128"
    alone = train(store, tmp_path, "alone", 1, "batch.forward_tokens=128", "train.zero_stage=0")
    packed = train(store, tmp_path, "packed", 2, "train.zero_stage=3")
    assert [step["tokens"] for step in alone] == [step["tokens"] for step in packed]
    assert [step["loss"] for step in packed] == pytest.approx([step["loss"] for step in alone], rel=1e-6)
    assert packed[-1]["loss"] < packed[0]["loss"]
    told = [events_of(tmp_path / name, "evaluation")[0]["heldout/chats.r"] for name in ("alone", "packed")]
    assert told[0] == pytest.approx(told[1], rel=1e-6)
    meta = open_in(open_store(store), "packed").meta
    assert load_template(open_store(store), meta["template"]) == family_template("llama3")
    assert (meta["bos"], meta["eos"]) == (None, tokenizer_of("llama3").specials["<|eot_id|>"])


def test_replay_of_pretraining_data_beside_chats(store: str, tmp_path: Path) -> None:
    mixed = "data.sources=[{dataset: chats.r, weight: 3}, {dataset: prose, weight: 1}]"
    steps = train(store, tmp_path, "mixed", 1, mixed, "data.sequence_length=64")
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {"loss/chats.r", "loss/prose"} <= steps[0].keys()


def test_the_recipe_trains(store: str, tmp_path: Path) -> None:
    small = ("num_layers=1", "dim=32", "num_heads=2", "num_kv_heads=1", "hidden_dim=64", "max_seq_len=256")
    overrides = (
        "model.kind=decoder",
        *(f"model.{value}" for value in small),
        f"store.url={store}",
        f"train.folder={tmp_path}",
        "train.init=null",
        "train.steps=2",
        "train.device=cpu",
        "batch.global_batch=4",
        "batch.forward_tokens=256",
        "data.memory_bytes=8388608",
        "data.sources=[{dataset: chats.r}]",
    )
    run_ranks(train_here, 1, "recipe/sft", overrides, timeout=120)
    assert len(steps_of(tmp_path / "sft")) == 2


def test_the_weights_are_the_trained_tokens(store: str) -> None:
    backend = open_store(store)
    spec = make_spec(RenderedSpec(too_long="cut"), backend, limit=6)
    assert open_spec(backend, spec_text(spec)) == spec
    record = {"tokens": [1, 2, 3, 4, 5, 6, 7, 8], "pieces": [3, 5], "trained": [1, 2, 3, 2]}
    whole = spec.make(spec.decode(record), Draw(0, 0), 6)
    assert whole.pieces == (2, 4)
    assert whole.tensors["tokens"].tolist() == [1, 2, 4, 5, 6, 7]
    assert whole.tensors["labels"].tolist() == [2, 3, 5, 6, 7, 8]
    assert whole.tensors["weights"].tolist() == [1, 1, 0, 0, 1, 1]
    assert (spec.size(record), spec.make(spec.decode(record), Draw(0, 0), 5).pieces) == (6, (2, 3))
    rng = np.random.default_rng(0)
    for _ in range(50):
        pieces = rng.integers(1, 9, rng.integers(1, 4)).tolist()
        total = sum(pieces)
        cut = spec.make(
            spec.decode({"tokens": range(total), "pieces": pieces, "trained": [total]}), Draw(0, 0), limit := 5
        )
        whole_length = total - len(pieces)
        assert cut.length == whole_length if whole_length <= limit else limit - len(pieces) < cut.length <= limit


def test_samples_that_are_longer_than_a_forward_are_refused_by_default(store: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="too long"):
        train(store, tmp_path, "long", 1, "batch.forward_tokens=64", "model.max_seq_len=32", "train.zero_stage=0")


def test_other_specs_and_templates_are_refused(store: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(store=store, folder=tmp_path))
    backend = open_store(store)
    texts = "data.spec={kind: text, tokenizer: bytes}"
    for override, kind in ((texts, "refuse"), ("data.spec={kind: rendered, too_long: drop}", "drop")):
        config = load_config(path, (override,))
        [source] = training_sources(config, backend, config.data.sources)
        assert (f'"too_long":"{kind}"' in source.view.spec, '"kind":"rendered"' in source.view.spec) == (True, True)
    rendered(store, "chats", "chats.q", family="qwen2_5")
    both = load_config(path, ("data.sources=[{dataset: chats.r}, {dataset: chats.q}]",))
    with pytest.raises(ConfigError, match="must have one chat template"):
        chat_facts(both, backend)
    with pytest.raises(ConfigError, match="must have one tokenizer"):
        training_sources(both, backend, both.data.sources)


def test_messages_that_are_not_rendered_are_refused(store: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(store=store, folder=tmp_path))
    config = load_config(path, ("data.sources=[{dataset: chats}]",))
    with pytest.raises((ConfigError, DataError), match="dataset render"):
        training_sources(config, open_store(store), config.data.sources)
