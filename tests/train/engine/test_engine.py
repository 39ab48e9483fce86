"""The engine at every ZeRO stage and several sizes: the same training, the same logical state."""

from functools import partial
from typing import Any

import pytest
import torch

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
