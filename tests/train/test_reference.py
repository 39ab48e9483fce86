"""The reference of a run of preferences: a frozen copy or a column, resumed, and compared before the first update."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.checkpoint.checkpoint import open_checkpoint, open_in
from fmscale.checkpoint.export.export import export_checkpoint
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist.retention import expired, references
from fmscale.config import derive_batch, load_config
from fmscale.config.spec import RenderedSpec
from fmscale.data.open import open_flat_loader
from fmscale.data.samples.rendered import values_maker
from fmscale.errors import ConfigError, Conflict, DataError
from fmscale.infer.load import open_trained
from fmscale.infer.score import logps
from fmscale.infer.value_columns import derive_values
from fmscale.models import build, load_weights
from fmscale.models.hf import hf_names
from fmscale.runtime.axes import Axis
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.retirement import replay, retire, unpin
from fmscale.store.open import open_store
from fmscale.train.engine.module import build_engine
from fmscale.train.preflight.preflight import check_run
from fmscale.train.reference import WrongReference
from tests.helpers.deepspeed_numbers import restart_numbers
from tests.helpers.ranks import run_ranks
from tests.helpers.rendered import random_rankings, rendered_dataset
from tests.infer.trained_run import MODEL, save_run, store_texts
from tests.train.runs import steps_of, train_here

CONFIG = """
store: {{url: {store}}}
data: {{sources: [{{dataset: pairs}}], spec: {{kind: rendered}}}}
model: {{num_layers: 2, dim: 32, num_heads: 4, num_kv_heads: 2, max_seq_len: 96, init_std: 0.2, tied: true,
  vocab_size: 272}}
batch: {{global_batch: 8, forward_tokens: 256}}
train: {{run: run, folder: {folder}, steps: 4, log_every: 1, precision: fp32, init: base@1}}
objective: {{kind: dpo}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: 0.001}}
"""

LORA = "adapter={kind: lora, rank: 4, alpha: 8, targets: [all-linear]}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a run of two checkpoints, pairs, and the column of log-probs under each checkpoint."""
    url = store_texts(tmp_path_factory.mktemp("store"))
    save_run(url, "base", (1, 2))
    backend = open_store(url)
    tokenizer = open_dataset(backend, "docs").commits()[-1].tokenizer
    rendered_dataset(backend, "pairs", [random_rankings(40, 0), random_rankings(20, 1)], tokenizer=tokenizer)
    rendered_dataset(backend, "bare", [random_rankings(9, 0)])
    for step in (1, 2):
        found = open_in(backend, "base", step)
        model = build(MODEL, vocab_size=272)
        load_weights(model, found.tensor)
        maker = values_maker("logps", found.found.body["manifest"]["digest"], "fp32")
        derive_values(backend, "pairs", "train", "reference", maker, model, logps)
    return url


def config_of(store: str, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(store=store, folder=folder))
    return path


def losses(path: Path, run: str, size: int, *overrides: str) -> list[dict[str, Any]]:
    run_ranks(train_here, size, str(path), (*overrides, f"train.run={run}"), timeout=120)
    steps = steps_of(path.parent / run)
    return [steps[step] for step in sorted(steps)]


def test_another_reference_and_dropout_stop_a_run_before_its_first_update(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    for run, override in (("other", "objective.reference=base@2"), ("drops", "model.dropout=0.1")):
        with pytest.raises(WrongReference, match="before the first update") as caught:
            run_ranks(train_here, 1, str(path), (override, f"train.run={run}"), timeout=120)
        assert "log-ratio" in str(caught.value.found)
        assert "model.dropout: 0" in caught.value.remedy
    assert losses(path, "right", 1, "objective.reference=base@1", "train.steps=1")[0]["loss"] == pytest.approx(0.693147)


def test_a_reference_is_pinned_and_without_it_a_resume_is_refused_by_name(store: str, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    path = config_of(str(tmp_path / "store"), tmp_path)
    losses(path, "kept", 1, "objective.reference=base@1", "train.steps=1")
    backend = open_store(str(tmp_path / "store"))
    log, needed = run_log(backend, "base"), open_in(backend, "base", 1).found.entry
    state = replay(log)
    assert "preference kept" in state.pins[needed]
    pins = {needed: {"preference kept"}}  # without those of other tests' runs
    assert expired(state.live.values(), pins, keep_last=1, keep_every=None) == []
    with pytest.raises(Conflict, match="pinned"):
        retire(log, [needed], references)
    for owner in state.pins[needed]:
        unpin(log, [needed], owner)
    retire(log, [needed], references)
    again = ("objective.reference=base@1", "train.run=kept")
    with pytest.raises(ConfigError, match=r"objective\.reference names a checkpoint that is not there") as caught:
        run_ranks(train_here, 1, str(path), again, timeout=120)
    assert (caught.value.found, caught.value.remedy) == ("base@1", "Steps of run base: 2.")
    shutil.rmtree(tmp_path / "store" / "runs" / "base")
    assert any("Run base has no checkpoint" in str(e) for e in check_run(load_config(str(path), again), 1).problems)


@pytest.mark.slow
def test_a_copy_and_a_column_give_the_same_run_and_a_resume_goes_on(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    column = losses(path, "column", 1, "objective.reference=base@1", "train.zero_stage=0")
    copy = losses(path, "copy", 2, "train.steps=2", "train.zero_stage=3")
    copy = losses(path, "copy", 1, "train.zero_stage=1", "train.init=gone")
    for name in ("loss", "metric/reward_margin", "metric/logp_chosen"):
        assert [step[name] for step in copy] == pytest.approx([step[name] for step in column], rel=1e-3, abs=1e-4), name
    found = open_checkpoint(f"{store}#copy@2").found
    planned = check_run(load_config(str(path), ("train.run=planned",)), 1).forecast
    assert found.bytes + found.referenced == planned.checkpoint_bytes
    saved, base = open_checkpoint(f"{store}#copy@4"), open_checkpoint(f"{store}#base@1")
    for name in base.names:
        assert torch.equal(saved.tensor(f"reference.{name}"), base.tensor(name)), "the reference is frozen"
        assert saved.states(f"reference.{name}") == ["weight"]
    assert not torch.equal(saved.tensor("norm.weight"), base.tensor("norm.weight"))
    exported = export_checkpoint(
        saved, tmp_path / "hf", format="hf", names=hf_names(MODEL), files={"config.json": b"{}"}
    )
    assert {path.name for path in exported} == {"model.safetensors", "config.json"}
    for name, tensor in open_trained(f"{store}#copy@4").model.named_parameters():
        assert torch.equal(tensor, saved.tensor(name)), "a model for use is without its reference"
    begun = losses(path, "again", 1, "train.init=copy@4", "train.steps=1")
    assert begun[0]["metric/reward_margin"] == 0, "the reference is the run's own beginning"


@pytest.mark.slow
def test_a_reward_model_begins_with_the_weights_of_a_language_model(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    reward = ("objective={kind: reward}", "model.score=true")
    [first, *rest] = losses(path, "reward", 2, *reward, "train.zero_stage=3", "optimizer.lr=0.01")
    assert first["loss"] == pytest.approx(0.693147)
    assert rest[-1]["metric/score_margin"] != 0
    begun = open_checkpoint(f"{store}#reward@4")
    assert begun.tensor("score.weight").shape == (1, 32)
    assert losses(path, "from-reward", 1, "train.init=reward@4", "train.steps=1")[0]["metric/reward_margin"] == 0


def test_the_plan_names_what_lacks(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)

    def problems(*overrides: str) -> str:
        return "\n".join(map(str, check_run(load_config(str(path), overrides), 1).problems))

    assert problems() == problems("objective.reference=base@1") == ""
    assert "model.score: true" in problems("objective={kind: reward}")
    assert "Steps of run base: 1, 2" in problems("objective.reference=base@7")
    assert "no adapter" in problems("objective.reference=adapter_off")
    assert "Take objective.reference: adapter_off" in problems(LORA)
    lacking = problems("objective.reference=base@1", "train.precision=bf16")
    assert "--column reference --with RUN@STEP --precision bf16 --split train" in lacking


def parameter_bytes(rank: int, size: int, path: str, overrides: Sequence[str]) -> tuple[int, int]:
    """Bytes of the parameters that this rank's engine holds, trained as bf16 and frozen."""
    config = load_config(path, overrides)
    restart_numbers()
    batch = derive_batch(config.batch, size)
    engine = build_engine(config, Axis(rank=rank, size=size), 272, batch, "cpu")
    sizes = {True: 0, False: 0}
    for parameter in engine.module.parameters():
        held = getattr(parameter, "ds_tensor", parameter)
        sizes[parameter.requires_grad] += held.numel() * (2 if parameter.requires_grad else held.element_size())
    return sizes[True], sizes[False]


@pytest.mark.parametrize("overrides", [(), (LORA, "objective.reference=adapter_off")], ids=["copy", "base"])
def test_the_plan_counts_the_frozen_weights_that_a_rank_holds(
    store: str, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    path, bf16 = config_of(store, tmp_path), (*overrides, "train.precision=bf16")
    forecast = check_run(load_config(str(path), bf16), 2).forecast
    assert forecast.parameters
    for stage in (0, 3):
        ranks = run_ranks(parameter_bytes, 2, str(path), (*bf16, f"train.zero_stage={stage}"), timeout=120)
        parts = 2 if stage == 3 else 1
        wanted = 2 * forecast.parameters // parts, 2 * forecast.frozen // parts
        assert ranks == [wanted, wanted]
        # At stage 3 the plan also has the weights that are gathered at a time: all of this small model's.
        gathered = 2 * (forecast.parameters + forecast.frozen) if stage == 3 else 0
        assert forecast.stages[stage].parameters == sum(wanted) + gathered


def test_a_commit_without_the_column_is_refused_with_the_command(store: str) -> None:
    spec = replace(RenderedSpec(), reference=values_maker("logps", "0" * 32, "fp32"))
    with pytest.raises(DataError, match="commit 0 of dataset bare has no column reference") as caught:
        open_flat_loader(store, dataset="bare", spec=spec, forward_tokens=256, batch=4)
    assert "fmscale dataset derive STORE/bare --column reference" in caught.value.remedy


def test_a_step_and_a_column_are_needed_for_a_reference_by_name(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    for override, text in (
        ("objective.reference=base", "must name a step"),
        ("objective={kind: kto, reference: base@1}", "cannot be a column for kto"),
        ("objective={kind: dpo, loss: hinge, label_smoothing: 0.1}", "has no meaning for loss hinge"),
        ("objective={kind: reward, loss: plackett_luce, margin: 1}", "has no meaning for loss plackett_luce"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config(str(path), (override,))


@pytest.mark.slow
def test_an_adapter_that_is_off_is_the_reference_of_the_adapter(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    off = losses(path, "off", 2, LORA, "objective.reference=adapter_off", "train.zero_stage=3", "optimizer.lr=0.01")
    column = losses(path, "on", 1, LORA, "objective.reference=base@1", "train.zero_stage=0", "optimizer.lr=0.01")
    assert off[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert off[-1]["metric/reward_margin"] != 0
    for name in ("loss", "metric/reward_margin", "metric/logp_chosen"):
        assert [step[name] for step in off] == pytest.approx([step[name] for step in column], rel=1e-3, abs=1e-4), name


@pytest.mark.slow
def test_an_adapter_of_a_reward_model_trains_the_score_too(store: str, tmp_path: Path) -> None:
    path = config_of(store, tmp_path)
    keys = (LORA, "objective.kind=reward", "model.score=true", "optimizer.lr=0.01")
    steps = losses(path, "scored", 2, *keys, "train.zero_stage=2", "train.steps=2")
    steps = losses(path, "scored", 1, *keys, "train.zero_stage=3")
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5), "the score begins at 0"
    saved = open_checkpoint(f"{store}#scored")
    assert set(saved.states("score.weight")) == {"weight", "exp_avg", "exp_avg_sq"}
    opened = open_trained(f"{store}#scored").model
    assert torch.equal(opened.score.weight, saved.tensor("score.weight"))
    assert opened.score.weight.abs().max() > 0
