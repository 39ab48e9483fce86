"""A checkpoint by names, and in other libraries' formats, read back with those libraries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from fmscale.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fmscale.checkpoint.export.export import export_checkpoint
from fmscale.checkpoint.format.piece import whole
from fmscale.cli.main import build_app
from fmscale.config import ModelConfig, as_tree
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.errors import ConfigError, CorruptData
from fmscale.models import build
from fmscale.models.hf import open_hf_folder
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, SMALL, Fleet, Tensors, values


def expected(key: tuple[str, str], step: int = 4) -> torch.Tensor:
    dtype, shape = SMALL[key]
    return values(key, dtype, step, 0, int(torch.Size(shape).numel())).view(shape)


@pytest.fixture
def saved(tmp_path: Path, in_thread: None) -> str:
    """URL of a store with steps 3 and 4 of three ranks."""
    url = str(tmp_path / "store")
    with Fleet(url, ranks=3) as fleet:
        fleet.saved(3)
        fleet.saved(4)
    return url


@pytest.fixture
def opened(saved: str) -> Checkpoint:
    return open_checkpoint(f"{saved}#{RUN}")


def test_tensors_by_name(opened: Checkpoint) -> None:
    assert opened.step == 4
    assert opened.meta == {"step": 4}
    assert set(opened.names) == {name for name, _ in SMALL}
    for key, (_, shape) in SMALL.items():
        assert torch.equal(opened.tensor(*key), expected(key))
        assert opened.info(*key).shape == shape
    assert set(opened.states("layers.0.wq.weight")) == {"weight", "exp_avg", "exp_avg_sq"}
    part = opened.read("layers.0.wq.weight", "exp_avg", 100, 50)
    assert torch.equal(part, expected(("layers.0.wq.weight", "exp_avg")).view(-1)[100:150])


def test_a_step_and_unknown_names(saved: str, opened: Checkpoint) -> None:
    before = open_checkpoint(f"{saved}#{RUN}@3")
    assert torch.equal(before.tensor("table"), expected(("table", "weight"), 3))
    with pytest.raises(ConfigError, match="Steps there: 3, 4"):
        open_checkpoint(f"{saved}#{RUN}@5")
    with pytest.raises(ConfigError, match=r"layers\.0\.wq\.weight"):
        opened.tensor("layers.0.wq")
    with pytest.raises(ConfigError, match="Its states: weight"):
        opened.tensor("table", "exp_avg")
    with pytest.raises(ConfigError, match="no such range"):
        opened.read("table", "weight", 70, 20)


def test_reading_checks_what_it_reads(saved: str, opened: Checkpoint) -> None:
    store = open_store(saved)
    for file in opened.manifest.files:
        data = bytearray(store.get(file.key))
        data[-1] ^= 1
        store.put(file.key, bytes(data))
    with pytest.raises(CorruptData, match="checksum"):
        open_checkpoint(f"{saved}#{RUN}").tensor("mask", "buffer")


def test_safetensors(opened: Checkpoint, tmp_path: Path) -> None:
    [path] = export_checkpoint(opened, tmp_path / "out", format="safetensors")
    found = load_file(path)
    assert found.keys() == {f"{state}/{name}" for name, state in SMALL}
    assert all(torch.equal(found[f"{key[1]}/{key[0]}"], expected(key)) for key in SMALL)


def test_hugging_face_names_shards_and_type(opened: Checkpoint, tmp_path: Path) -> None:
    names = {name: f"model.{name}" for name in opened.names}
    seen: list[int] = []
    paths = export_checkpoint(
        opened,
        tmp_path / "out",
        format="hf",
        names=names,
        files={"config.json": b'{"model_type": "x"}', "tokenizer.json": b"{}"},
        dtype="bfloat16",
        shard_bytes=3000,
        progress=seen.append,
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    weights = [key for key in SMALL if key[1] == "weight"]
    assert set(index["weight_map"]) == {names[name] for name, _ in weights}
    assert len(set(index["weight_map"].values())) == 2
    for key in weights:
        with safe_open(tmp_path / "out" / index["weight_map"][names[key[0]]], framework="pt") as file:
            assert torch.equal(file.get_tensor(names[key[0]]), expected(key).to(torch.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "x"}
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}
    assert sum(seen) == sum(expected(key).nbytes for key in weights)
    with pytest.raises(ConfigError, match="not empty"):
        export_checkpoint(opened, tmp_path / "out", format="hf")
    with pytest.raises(ConfigError, match="no name for a tensor"):
        export_checkpoint(opened, tmp_path / "other", format="hf", names={})
    with pytest.raises(ConfigError, match="not a floating type"):
        export_checkpoint(opened, tmp_path / "third", format="hf", dtype="int8")


def test_dcp(opened: Checkpoint, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader, load  # type: ignore[attr-defined]

    export_checkpoint(opened, tmp_path / "out", format="dcp")
    found = {
        f"model.{name}" if state == "weight" else f"optim.state.{name}.{state}": torch.zeros(
            shape, dtype=getattr(torch, dtype)
        )
        for (name, state), (dtype, shape) in SMALL.items()
    }
    load(found, storage_reader=FileSystemReader(tmp_path / "out"), no_dist=True)
    for name, state in SMALL:
        key = f"model.{name}" if state == "weight" else f"optim.state.{name}.{state}"
        assert torch.equal(found[key], expected((name, state)))


def run(*arguments: str) -> str:
    """Output of the command line; it must succeed."""
    done = CliRunner().invoke(build_app(), ["checkpoint", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_line_lists_shows_and_verifies(saved: str) -> None:
    rows = json.loads(run("list", saved, "--json"))
    assert [(row["run"], row["step"], row["ranks"], row["verified"]) for row in rows] == [
        (RUN, 3, 3, False),
        (RUN, 4, 3, False),
    ]
    assert "step" in run("list", f"{saved}#{RUN}")
    shown = json.loads(run("show", f"{saved}#{RUN}@3", "--json"))
    assert shown["meta"] == {"step": 3}
    assert {row["name"] for row in shown["tensors"]} == {name for name, _ in SMALL}
    assert "layers.0.wq.weight" in run("show", f"{saved}#{RUN}")
    assert json.loads(run("verify", f"{saved}#{RUN}", "--no-mark", "--json"))["problems"] == []
    assert [row["verified"] for row in json.loads(run("list", saved, "--json"))] == [False, False]
    assert "every byte is as it was saved" in run("verify", f"{saved}#{RUN}")
    assert "every byte" in run("verify", f"{saved}#{RUN}"), "once more"
    assert [row["verified"] for row in json.loads(run("list", saved, "--json"))] == [False, True]


def test_the_command_line_names_damage(saved: str, opened: Checkpoint) -> None:
    store = open_store(saved)
    key = opened.manifest.files[0].key
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    done = CliRunner().invoke(build_app(), ["checkpoint", "verify", f"{saved}#{RUN}", "--json"])
    assert done.exit_code == 1
    assert [row["object"] for row in json.loads(done.stdout)["problems"]] == [key]
    assert not json.loads(run("list", saved, "--json"))[1]["verified"]


def test_the_command_line_says_what_is_wrong_with_an_address(saved: str) -> None:
    for arguments in (
        ["show", saved],
        ["show", f"{saved}#nothing"],
        ["export", f"{saved}#{RUN}", "--to", "x"],
    ):
        done = CliRunner().invoke(build_app(), ["checkpoint", *arguments])
        assert done.exit_code == 2, done.output
    done = CliRunner().invoke(build_app(), ["checkpoint", "list", saved.replace("store", "nowhere")])
    assert done.exit_code == 2


@pytest.fixture
def model_and_export(tmp_path: Path, in_thread: None) -> tuple[torch.nn.Module, Path]:
    """A small model, saved with the trainer's meta, and its Hugging Face export."""
    model = ModelConfig(num_layers=2, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48, max_seq_len=32)
    tokenizer = ByteTokenizer()
    ours = build(model, vocab_size=tokenizer.vocab_size)
    ours.init_weights(torch.Generator().manual_seed(0))
    url = str(tmp_path / "store")
    meta = {
        "config": {"model": as_tree(model), "data": {"sources": [{"dataset": "docs"}]}},
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": store_tokenizer(open_store(url), tokenizer.to_json()),
    }
    tensors: Tensors = {(name, "weight"): ("float32", tuple(p.shape)) for name, p in ours.named_parameters()}
    with Fleet(url, tensors=tensors, ranks=1, seed=None) as fleet:
        pieces = [whole(name, p) for name, p in ours.named_parameters()]
        fleet.savers[0].save(9, pieces, meta)
        assert fleet.settle()[0][0].state == "acknowledged"
    run("export", f"{url}#{RUN}", "--to", str(tmp_path / "hf"), "--format", "hf")
    return ours, tmp_path / "hf"


def test_a_model_is_exported_in_hugging_faces_format(model_and_export: Any) -> None:
    ours, folder = model_and_export
    theirs = open_hf_folder(folder)
    assert theirs.shapes == {name: tuple(p.shape) for name, p in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(theirs.read(name), parameter)


@pytest.mark.slow
def test_transformers_computes_the_same_with_it(model_and_export: Any) -> None:
    transformers = pytest.importorskip("transformers")
    ours, folder = model_and_export
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(24)[None] * 7 % 250
    with torch.no_grad():
        assert torch.allclose(ours.head(ours(tokens)), theirs(tokens).logits, atol=1e-4)
