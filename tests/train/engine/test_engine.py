"""The engine at every ZeRO stage and several sizes: the same training, the same logical state."""

import dataclasses
import zlib
from functools import partial
from typing import Any

import pytest
import torch

from fmscale.config.adapter import LoraConfig
from tests.helpers.ranks import run_ranks
from tests.train.engines import GEMMA, config_of, held, joined, make_engine, train

STAGES = (0, 1, 2, 3)


def run(rank: int, size: int, stage: int, precision: str, accumulation: int, steps: int, model: dict[str, Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if model:  # else every parameter of so small a model is whole all the time
            patch.setattr("fmscale.train.engine.deepspeed_config.ALWAYS_WHOLE", 0)
        engine = make_engine(config_of(stage, precision, model), rank, size, accumulation)
        return train(engine, rank, size, range(steps), accumulation), held(engine, save=True)


def outcome(size: int, stage: int, precision: str, accumulation: int = 1, steps: int = 4, **model: Any) -> Any:
    ranks = run_ranks(run, size, stage, precision, accumulation, steps, model, timeout=120)
    losses = [rank[0] for rank in ranks]
    assert all(loss == losses[0] for loss in losses), "ranks disagree on the loss"
    return losses[0], joined([rank[1] for rank in ranks])


@pytest.fixture(scope="module")
def reference() -> Any:
    """One rank, stage 0, fp32, the whole batch in one forward."""
    return outcome(1, 0, "fp32")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_fp32_does_not_depend_on_stage_ranks_or_microbatches(reference: Any, stage: int, accumulation: int) -> None:
    assert_equal(outcome(2, stage, "fp32", accumulation), reference)


def test_all_that_a_decoder_can_have_trains_at_stage_3_as_at_stage_0() -> None:
    """Norms of heads are used in their attention's rotation, and must be whole there."""
    assert_equal(outcome(2, 3, "fp32", steps=2, **GEMMA), outcome(1, 0, "fp32", steps=2, **GEMMA))


def assert_equal(found: Any, wanted: Any) -> None:
    """The same losses and state, but for the order of sums."""
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(wanted[0]), rtol=2e-5, atol=2e-6)
    assert found[1].keys() == wanted[1].keys()
    for key, values in wanted[1].items():
        torch.testing.assert_close(found[1][key], values, rtol=2e-3, atol=2e-5, msg=partial("{}: {}".format, key))


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_keeps_fp32_masters_that_the_weights_are_cast_from(reference: Any, stage: int) -> None:
    losses, state = outcome(2, stage, "bf16")
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(reference[0]), rtol=0.05, atol=0.02)
    weight = state["layers.0.attention.wq.weight", "weight"]
    assert not torch.equal(weight, weight.bfloat16().float()), "the master has bf16 values only"


def recomputed(rank: int, size: int) -> Any:
    kinds = (config_of(0, "bf16", recompute=recompute) for recompute in ("none", "full"))
    return [train(make_engine(config, rank, size), rank, size, range(2)) for config in kinds]


def test_recompute_at_stage_0_repeats_the_forward_in_bf16() -> None:
    """There the weights are fp32 masters, which each forward casts, also when backward repeats it."""
    plain, again = run_ranks(recomputed, 1, timeout=120)[0]
    assert plain == again


DEFAULTS = {"use_multi_rank_bucket_allreduce": True, "memory_efficient_linear": True}
"""DeepSpeed's, which its engines here must not have."""


def settings(rank: int, size: int, ours: bool) -> Any:
    """At each stage: effective settings of ZeRO, losses and norms, and True if torch's linear layer is its own."""
    from torch.nn import functional

    from fmscale.train.engine import deepspeed, module
    from fmscale.train.engine.deepspeed_config import deepspeed_config

    def with_defaults(*args: Any) -> dict[str, Any]:
        made = deepspeed_config(*args)
        made["zero_optimization"] |= DEFAULTS
        return made

    linear, found = functional.linear, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "linear", linear)  # put back at the end
        if not ours:
            for user in (deepspeed, module):
                patch.setattr(user, "deepspeed_config", with_defaults)
        for stage in STAGES:
            engine = make_engine(config_of(stage, "fp32"), rank, size)
            zero = engine._engine._config.zero_config
            kept = {name: getattr(zero, name) for name in (*DEFAULTS, "stage", "zero_hpz_partition_size")}
            found.append((kept, train(engine, rank, size, range(2)), functional.linear is linear))
    return found


def test_effective_settings_cost_no_accuracy_and_leave_torch_as_it_is() -> None:
    ours, theirs = (run_ranks(settings, 2, own, timeout=120)[0] for own in (True, False))
    for stage in STAGES:
        effective, trained, untouched = ours[stage]
        assert effective["stage"] == stage
        assert not effective["use_multi_rank_bucket_allreduce"]
        assert stage < 3 or not effective["memory_efficient_linear"]
        assert effective["zero_hpz_partition_size"] == 1
        assert untouched
        assert trained == theirs[stage][1]
    assert not theirs[3][2], "DeepSpeed no longer replaces torch's linear layer"


def hierarchical(rank: int, size: int, adapter: bool, hpz: int) -> Any:
    """Losses and norms of stage 3, of 2 steps and of 2 after a restore; the fewest second copies before an update."""
    config = config_of(3, "fp32" if adapter else "bf16", GEMMA, zero_hpz_partition_size=hpz)
    config = dataclasses.replace(config, adapter=LoraConfig(rank=2) if adapter else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.engine.deepspeed_config.ALWAYS_WHOLE", 0)
        engine: Any = make_engine(config, rank, size)
    step, copies = engine.step, []

    def counted(*args: Any) -> Any:
        copies.append(sum(p.ds_secondary_tensor is not None for p in engine.module.parameters()))
        return step(*args)

    engine.step = counted
    train(engine, rank, size, range(1))  # makes copies of weights, as the dry run does, which a restore replaces
    for piece in (*engine.base_pieces(), *engine.pieces(save=False)):
        if piece.state == "weight":
            drawn = torch.Generator().manual_seed(zlib.crc32(piece.name.encode()))
            whole = torch.randn(torch.Size(piece.shape).numel(), generator=drawn) / 5
            piece.tensor.copy_(whole[piece.start : piece.start + piece.tensor.numel()])
        else:
            piece.tensor.zero_()
    engine.restored(0)
    first = train(engine, rank, size, range(2))
    kept = [piece.tensor.clone() for piece in engine.pieces(save=False)]
    third = train(engine, rank, size, range(2, 3))
    for piece, values in zip(engine.pieces(save=False), kept, strict=True):
        piece.tensor.copy_(values)
    engine.restored(2)
    again = train(engine, rank, size, range(2, 4))
    assert again[:1] == third
    return first + again, min(copies)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_hierarchical_stage_3_trains_as_plain_stage_3_also_after_a_restore(adapter: bool) -> None:
    """Four ranks as two nodes; with an adapter the frozen weights keep their second copy over steps."""
    plain, second = (run_ranks(hierarchical, 4, adapter, hpz, timeout=240) for hpz in (1, 2))
    assert [losses for losses, _ in second] == [losses for losses, _ in plain]
    assert all(copies == 0 for _, copies in plain)
    assert all(copies > 10 for _, copies in second)
