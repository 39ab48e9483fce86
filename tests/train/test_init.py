"""`train.init`: a run begins at step 0 with the weights of another run or of a folder in Hugging Face's format."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fmscale.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fmscale.checkpoint.export.export import export_checkpoint
from fmscale.cli.main import build_app
from fmscale.config import Config, load_config
from fmscale.errors import ConfigError, StoreError
from fmscale.models.hf import hf_config, hf_names
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.store.open import open_store
from fmscale.train.data import tokenizer_of, vocabulary
from fmscale.train.init import Init, find_init
from fmscale.train.preflight.preflight import check_run
from tests.helpers.ranks import run_ranks
from tests.train.runs import check_state, delivered, events_of, make_corpus, state_at_begin, train_here, write_config
from tests.train.test_kills import PATIENCE, finish, start

COMMON = ("batch.uneven=fill", "train.precision=bf16")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def base(store: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of a run at 2 ranks and stage 2."""
    path = write_config(tmp_path_factory.mktemp("base"), store)
    run_ranks(train_here, 2, str(path), (*COMMON, "train.run=base", "train.steps=2"), timeout=120)
    return open_checkpoint(f"{store}#base@2")


@pytest.fixture(scope="module")
def folder(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export to Hugging Face's format, in several files."""
    target = tmp_path_factory.mktemp("hf") / "model"
    model = config_of(base, tmp_path_factory.mktemp("config")).decoder("the export")
    names, config = hf_names(model), hf_config(model, base.meta["vocab_size"], bos=None, eos=None)
    files = {"config.json": json.dumps(config).encode()}
    export_checkpoint(base, target, format="hf", names=names, files=files, shard_bytes=40_000)
    assert len(list(target.glob("*.safetensors"))) > 1
    return target


def config_of(base: Checkpoint, folder: Path, *overrides: str) -> Config:
    """A config for the store of `base`, with the line of `train.init`."""
    return load_config(write_config(folder, base.backend.url.removeprefix("file://")), overrides)


def begin(base: Checkpoint, folder: Path, size: int, stage: int, init: str, run: str) -> dict[str, Any]:
    """Train a step from `init`, check weights and order, and return what the checkpoint says about its origin."""
    store = base.backend.url.removeprefix("file://")
    path = write_config(folder, store)
    overrides = (*COMMON, f"train.run={run}", f"train.zero_stage={stage}", "train.steps=1", f"train.init={init}")
    ranks = run_ranks(state_at_begin, size, str(path), overrides, timeout=120)
    check_state(ranks, base, ["weight"])
    moments = [values for rank in ranks for _, state, _, values in rank if state.startswith("exp_avg")]
    assert moments
    assert not any(values.any() for values in moments), "moments are fresh"
    assert set(delivered(folder / run)["k"].to_pylist()) == set(range(6)), "the order begins at sample 0"
    saved = open_checkpoint(f"{store}#{run}@1")
    assert (saved.meta["updates"], saved.meta["loader"]["k"]) == (1, 6)
    [event] = events_of(folder / run, "initialised")
    origin: dict[str, Any] = saved.meta["init"]
    assert event == {"event": "initialised", **origin} | ({"time": event["time"]} if "time" in event else {})
    return origin


@pytest.mark.parametrize(
    ("size", "stage"),
    [(1, 0), *(pytest.param(n, s, marks=pytest.mark.slow) for n, s in ((3, 3), (3, 1)))],
)
def test_a_run_begins_with_the_weights_of_another_run(base: Checkpoint, tmp_path: Path, size: int, stage: int) -> None:
    store = base.backend.url.removeprefix("file://")
    address = "base@2" if size == 1 else f"{store}#base"
    origin = begin(base, tmp_path, size, stage, address, f"from-run-{size}-{stage}")
    shown, digest = f"{address.partition('@')[0]}@2", base.found.body["manifest"]["digest"]
    assert origin == {"address": shown, "step": 2, "digest": digest}


def test_a_run_begins_with_the_weights_of_a_folder(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    origin = begin(base, tmp_path, 2, 3, str(folder), "from-folder")
    assert origin["address"] == str(folder)
    assert len(origin["digest"]) == 32


GEMMA = {
    "norm_offset": 1, "post_norms": "true", "qk_norm": "true", "activation": "gelu_tanh", "embedding_scale": 32**0.5,
    "query_scalar": 16, "window": 8, "global_layers": "[1]", "local_rope_theta": 100, "logit_softcap": 30,
    "tied": "true",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "keys"), [("llama", {}), ("gemma3_text", GEMMA)])
def test_a_run_begins_with_weights_that_transformers_saved_and_goes_back(
    base: Checkpoint, tmp_path: Path, kind: str, keys: dict[str, Any]
) -> None:
    import transformers

    section = tuple(f"model.{name}={value}" for name, value in keys.items())
    model = config_of(base, tmp_path, *section).decoder("the export")
    config = transformers.AutoConfig.for_model(**hf_config(model, base.meta["vocab_size"], bos=None, eos=None))
    auto: Any = transformers.AutoModelForCausalLM
    theirs = auto.from_config(config, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    run = f"from-{kind}"
    overrides = (*COMMON, *section, f"train.run={run}", "train.steps=1", "train.init=" + str(tmp_path / "theirs"))
    path = write_config(tmp_path, base.backend.url.removeprefix("file://"))
    [held] = run_ranks(state_at_begin, 1, str(path), overrides)
    weights, names = theirs.state_dict(), hf_names(model)
    found = {name: values for name, state, _, values in held if state == "forward"}
    assert found.keys() == names.keys()
    assert all(torch.equal(found[name], weights[names[name]].view(-1)) for name in names)
    address = f"{base.backend.url.removeprefix('file://')}#{run}"
    result = CliRunner().invoke(build_app(), ["checkpoint", "export", address, "--to", str(tmp_path / "back")])
    assert result.exit_code == 0, result.output
    back, info = auto.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert (back.config.model_type, any(info.values())) == (kind, False)


def test_a_run_with_checkpoints_goes_on_from_these(base: Checkpoint, tmp_path: Path) -> None:
    """A requeued job has `init` in its config; the base may be gone by then."""
    origin = begin(base, tmp_path, 1, 2, "base", "requeued")
    path = write_config(tmp_path, base.backend.url.removeprefix("file://"))
    overrides = (*COMMON, "train.run=requeued", "train.steps=2", "train.init=gone")
    [again] = run_ranks(train_here, 1, str(path), overrides)
    assert (again["first_step"], again["last_step"]) == (1, 2)
    assert len(events_of(tmp_path / "requeued", "initialised")) == 1
    assert open_checkpoint(f"{base.backend.url}#requeued@2").meta["init"] == origin


def found_init(base: Checkpoint, folder: Path, init: str, *overrides: str) -> Init:
    """The source that a run named in a file finds, without ranks."""
    path = write_config(folder, base.backend.url.removeprefix("file://"))
    path.write_text(path.read_text().replace("run: run,", f"run: run, init: '{init}',"))
    config = load_config(path, overrides)
    backend = open_store(config.store.url)
    tokenizer = tokenizer_of(config, backend)
    return find_init(config, backend, vocabulary(config, tokenizer), tokenizer.digest if tokenizer else None)


@pytest.mark.parametrize(
    ("init", "override", "texts"),
    [
        ("nosuch", "", ("checkpoint that is not there", "no checkpoint")),
        ("base@7", "", ("checkpoint that is not there", "Steps of run base: 2")),
        ("STORE#base@7", "", ("checkpoint that is not there", "Steps of run base: 2")),
        ("/nowhere#base", "", ("directory does not exist", "'/nowhere'")),
        ("./nowhere", "", ("Hugging Face's format", "config.json")),
        ("base", "model.dim=64", ("dim 32 there, 64 here", "dim: 32")),
        ("base", "model.num_heads=4", ("num_heads 2 there, 4 here", "num_heads: 2")),
        ("base", "model.tied=true", ("tied False there, True here", "tied: false")),
        ("base", "model.qk_norm=true", ("qk_norm False there, True here", "qk_norm: false")),
        ("FOLDER", "model.norm_offset=1", ("norm_offset 0.0 there, 1.0 here", "norm_offset: 0.0")),
        ("base", "model.vocab_size=300", ("vocab_size 272 there, 300 here", "vocab_size: 272")),
        ("FOLDER", "model.vocab_size=300", ("vocab_size 272 there, 300 here", "vocab_size: 272")),
        ("FOLDER", "model.num_layers=1", ("num_layers 2 there, 1 here", "num_layers: 2")),
    ],
)
def test_an_init_that_does_not_fit_is_refused_with_its_place(
    base: Checkpoint, folder: Path, tmp_path: Path, init: str, override: str, texts: tuple[str, ...]
) -> None:
    init = init.replace("STORE", base.backend.url).replace("FOLDER", str(folder))
    with pytest.raises((ConfigError, StoreError)) as refused:
        found_init(base, tmp_path, init, *filter(None, [override]))
    assert refused.value.cause.startswith(f"{tmp_path}/run.yaml:11: train.init")
    assert all(text in str(refused.value) for text in texts), refused.value


def test_a_folder_with_other_tensors_than_its_config_is_refused(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    """A vocabulary that was padded in the file alone, and a truncated file."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    names = hf_names(config_of(base, tmp_path).decoder("the export"))
    weights = {names[name]: base.tensor(name) for name in base.names}
    weights["lm_head.weight"] = torch.zeros(288, 32)
    save_file(weights, other / "model.safetensors")
    with pytest.raises(ConfigError, match=r"output.weight: \(288, 32\), the model has \(272, 32\)"):
        found_init(base, tmp_path, str(other))
    os.truncate(other / "model.safetensors", 100_000)
    with pytest.raises(ConfigError, match=r"run.yaml:11: train.init: A file of the model is damaged"):
        found_init(base, tmp_path, str(other))


def test_another_tokenizer_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    config = config_of(base, tmp_path, "train.init=base")
    with pytest.raises(ConfigError, match="another tokenizer"):
        find_init(config, open_store(config.store.url), 272, "0" * 32)


def test_a_difference_that_leaves_the_shapes_is_a_warning(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    for init in ("base", str(folder)):
        assert not found_init(base, tmp_path, init).warning
        assert "rope_theta is 500" in found_init(base, tmp_path, init, "model.rope_theta=500").warning


def test_plan_finds_the_source_before_the_ranks_start(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    def begins(*overrides: str) -> tuple[str, list[str], list[str]]:
        found = check_run(config_of(base, tmp_path, "train.run=planned", *overrides), 1)
        return found.begins, [str(problem) for problem in found.problems], found.warnings

    assert begins("train.init=base") == ("at step 0, with the weights of base@2", [], [])
    assert begins(f"train.init={folder}") == (f"at step 0, with the weights of {folder}", [], [])
    assert begins("train.run=base", "train.init=gone")[0] == "from checkpoint base@2"
    _, [problem], _ = begins("train.init=base@9")
    assert "names a checkpoint that is not there" in problem
    _, [], [warning] = begins("train.init=base", "model.norm_eps=0.1")
    assert "norm_eps" in warning


def test_init_and_a_fork_contradict_each_other(tmp_path: Path) -> None:
    path = write_config(tmp_path, "store")
    with pytest.raises(ConfigError, match=r"init gives a run's first weights"):
        load_config(path, ("train.init=base", "train.resume=base@2"))
    assert load_config(path, ("train.init=base", "train.resume=never")).train.init == "base"
    with pytest.raises(ConfigError, match="must not be empty"):
        load_config(path, ("train.init=''",))


@pytest.mark.slow
def test_a_kill_before_the_first_save_begins_with_the_same_weights(base: Checkpoint, tmp_path: Path) -> None:
    path = write_config(tmp_path, base.backend.url.removeprefix("file://"))
    overrides = ("train.run=killed", "train.init=base", "checkpoint.every=1000", "train.precision=bf16")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    process, deadline = start(path, 1, *overrides, "train.steps=100000"), time.monotonic() + PATIENCE
    while not metrics.exists() or not any(record.get("step") == 1 for record in read_jsonl(metrics)):
        assert process.poll() is None, (tmp_path / "output.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(start(path, 1, *overrides, "train.steps=2"), path)
    first = [record["loss"] for record in read_jsonl(metrics) if record.get("step") == 1 and "loss" in record]
    assert len(first) == 2
    assert first[0] == first[1]
    assert len(events_of(tmp_path / "killed", "initialised")) == 2


@pytest.mark.parametrize("source", ["run", "folder"])
def test_a_run_takes_its_model_from_its_first_weights(
    base: Checkpoint, folder: Path, tmp_path: Path, source: str
) -> None:
    """`model.kind: init`, at the start and at a resume, when the source may be gone."""
    path = write_config(tmp_path, base.backend.url.removeprefix("file://"))
    text = "".join(line for line in path.read_text().splitlines(True) if not line.startswith("model:"))
    path.write_text(text + "model: {kind: init, dropout: 0.1}\n")
    name, init = f"as-{source}", {"run": "train.init=base", "folder": f"train.init={folder}"}[source]
    keys = (*COMMON, f"train.run={name}")
    plan = check_run(load_config(path, [*keys, init]), 2)
    assert plan.problems == []
    run_ranks(train_here, 2, str(path), (*keys, init, "train.steps=1"), timeout=120)
    trained = open_checkpoint(f"{base.backend.url}#{name}")
    model = trained.meta["config"]["model"]
    there = {**base.meta["config"]["model"], "vocab_size": base.meta["vocab_size"]}
    differ = {key for key, value in model.items() if there[key] != value and key != "init_std"}
    assert differ == ({"head_dim", "hidden_dim"} if source == "folder" else set()), "a folder has the widths in numbers"
    [again] = run_ranks(train_here, 1, str(path), (*keys, "train.steps=2"), timeout=120)
    assert (again["first_step"], again["last_step"]) == (1, 2)
    [problem] = check_run(load_config(path, ["train.run=other"]), 2).problems
    assert "neither checkpoints nor train.init" in problem.cause
