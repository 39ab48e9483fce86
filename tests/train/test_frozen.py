"""Frozen parameters: in every checkpoint and export, restored at any size and stage, never changed by training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fmscale.checkpoint.export.export import export_checkpoint
from fmscale.checkpoint.export.zarr import as_zarr
from fmscale.config import OptimizerConfig, load_config
from fmscale.errors import ConfigError
from fmscale.models import build
from fmscale.models.hf import hf_names
from fmscale.store.open import open_store
from fmscale.train.engine.optimizer import parameter_groups
from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, make_engine
from tests.train.runs import check_state, make_corpus, state_at_begin, write_config

FROZEN = ("tok_embeddings.weight", "layers.0.attention_norm.weight", "layers.1.feed_forward.w1.weight")
"""Tensors below and above the size from which ZeRO-3 partitions a parameter in forward (10,000 elements)."""
COMMON = (
    "model.dim=48",
    "model.vocab_size=4096",
    "batch.uneven=fill",
    "checkpoint.every=1",
    "train.record_delivery=false",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def freezing(frozen: tuple[str, ...] | None) -> Any:
    """`build` with these parameters frozen; None freezes all."""

    def built(*args: Any, **options: Any) -> Any:
        model = build(*args, **options)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen is not None and name not in frozen)
        return model

    return built


def train_frozen(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> Any:
    """`state_at_begin` of a model with frozen parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.engine.module.build", freezing(FROZEN))
        return state_at_begin(rank, size, path, overrides)


@pytest.mark.parametrize(
    ("precision", "moves"),
    [
        ("bf16", ((1, 0), (2, 3), (3, 2))),
        pytest.param("bf16", ((1, 3), (2, 1), (3, 0)), marks=pytest.mark.slow),
        pytest.param("fp32", ((1, 2), (2, 3), (3, 1)), marks=pytest.mark.slow),
    ],
)
def test_frozen_parameters_move_to_any_size_and_stage(
    store: str, tmp_path: Path, precision: str, moves: tuple[tuple[int, int], ...]
) -> None:
    path, run = write_config(tmp_path, store), f"{precision}-{''.join(str(stage) for _, stage in moves)}"
    common = (*COMMON, f"train.run={run}", f"train.precision={precision}")
    first: dict[str, torch.Tensor] = {}
    for number, (size, stage) in enumerate(moves):
        steps = (f"train.steps={2 * number + 2}", f"train.zero_stage={stage}")
        ranks = run_ranks(train_frozen, size, str(path), (*common, *steps), timeout=120)
        if number:
            check_state(ranks, open_checkpoint(f"{store}#{run}@{2 * number}"))
        saved = open_checkpoint(f"{store}#{run}@{2 * number + 2}")
        assert {tuple(saved.states(name)) for name in FROZEN} == {("weight",)}
        assert all(len(saved.states(name)) == 3 for name in saved.names if name not in FROZEN)
        frozen = {name: saved.tensor(name) for name in FROZEN}
        first = first or frozen
        assert all(torch.equal(frozen[name], first[name]) for name in FROZEN), "training changed a frozen tensor"
        # The second save of a job refers to the frozen pieces of the first; pieces below 64 KiB are written again.
        entries = {entry.step: entry for entry in list_checkpoints(open_store(store), run)}
        assert [entries[2 * number + n].referenced for n in (1, 2)] == [0, frozen[FROZEN[0]].nbytes]
    fresh = build(load_config(path, common).decoder("this test"), vocab_size=len(first["tok_embeddings.weight"]))
    fresh.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in fresh.named_parameters():
        if name in FROZEN:
            assert torch.equal(first[name], parameter.detach().to(first[name].dtype)), name
    check_exports(saved, tmp_path / "exports", load_config(path, common).decoder("this test"))


def check_exports(saved: Checkpoint, folder: Path, model: Any) -> None:
    names = hf_names(model)
    export_checkpoint(saved, folder / "hf", format="hf", names=names)
    export_checkpoint(saved, folder / "plain", format="safetensors")
    export_checkpoint(saved, folder / "dcp", format="dcp")
    from torch.distributed.checkpoint import FileSystemReader  # type: ignore[attr-defined]

    dcp = FileSystemReader(folder / "dcp").read_metadata().state_dict_metadata
    group: Any = as_zarr(saved)
    with (
        safe_open(folder / "hf" / "model.safetensors", "pt") as hf,
        safe_open(folder / "plain" / "checkpoint.safetensors", "pt") as plain,
    ):
        for name in FROZEN:
            want = saved.tensor(name)
            assert torch.equal(hf.get_tensor(names[name]), want)
            assert torch.equal(plain.get_tensor(f"weight/{name}"), want)
            assert f"model.{name}" in dcp
            assert group[f"weight/{name}"].shape == want.shape


def test_a_frozen_tensor_of_another_precision_is_converted(store: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, store)
    for precision, steps in (("fp32", 1), ("bf16", 2), ("fp32", 3)):
        overrides = (*COMMON, "train.run=mixed", f"train.precision={precision}", f"train.steps={steps}")
        run_ranks(train_frozen, 1, str(path), overrides, timeout=120)
    full, half, back = (open_checkpoint(f"{store}#mixed@{step}").tensor(FROZEN[0]) for step in (1, 2, 3))
    assert (full.dtype, half.dtype, back.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert torch.equal(full.bfloat16(), half)
    assert torch.equal(half.float(), back)


def test_init_thaws_and_freezes(store: str, tmp_path: Path) -> None:
    """A frozen bf16 tensor becomes a trained master, and a trained master a frozen bf16 tensor."""
    path, common = write_config(tmp_path, store), (*COMMON, "train.steps=1", "train.precision=bf16")
    run_ranks(train_frozen, 1, str(path), (*common, "train.run=iced"), timeout=120)
    for run, init, train in (("thawed", "iced", state_at_begin), ("iced-again", "thawed", train_frozen)):
        overrides = (*common, f"train.run={run}", f"train.init={init}", "train.zero_stage=3")
        ranks = run_ranks(train, 1, str(path), overrides, timeout=120)
        check_state(ranks, open_checkpoint(f"{store}#{init}"), ["weight"])


def test_frozen_parameters_are_in_no_optimizer_group() -> None:
    model = torch.nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    [group] = parameter_groups(model, OptimizerConfig())
    assert [id(parameter) for parameter in group["params"]] == [id(model.weight)]
    [group] = parameter_groups(model, OptimizerConfig(), decay=False)
    assert group["weight_decay"] == 0


def all_frozen(rank: int, size: int, stage: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.engine.module.build", freezing(None))
        make_engine(config_of(stage, "bf16"), rank, size)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_model_without_a_trained_parameter_is_refused(stage: int) -> None:
    with pytest.raises(ConfigError, match="no parameter to train"):
        run_ranks(all_frozen, 1, stage)
