"""What the settings of optimizer, reduction, recompute and compile come to in an engine, by its numbers."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from fmscale.config import Config, OptimizerConfig
from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, held, make_engine, train

RATE = 1e-2
ADAMW = OptimizerConfig(lr=1.0, betas=(0.5, 0.75), eps=1e-2, weight_decay=0.5, clip_norm=0.0)
"""No value is a default, and eps is as large as gradients are."""


def one_update(rank: int, size: int, config: Config) -> Any:
    """(name, state) -> (shape, before, after) over one step from fresh moments."""
    engine = make_engine(config, rank, size)
    before = held(engine, save=True)
    train(engine, rank, size, range(1))
    after = {(name, state): values for name, state, _, _, values in held(engine, save=True)}
    return {(n, s): (shape, values, after[n, s]) for n, s, shape, _, values in before}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_update_is_adamw_with_the_configs_numbers_and_decays_only_matrices(stage: int) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, at t = 1: with fresh moments both of the gradient g are known."""
    config = dataclasses.replace(config_of(stage, "fp32"), optimizer=ADAMW)
    [seen] = run_ranks(one_update, 1, config, timeout=120)
    dims = Counter(len(shape) for (_, state), (shape, _, _) in seen.items() if state == "weight")
    assert dims[1] > 3
    assert dims[2] > 10
    for (name, state), (shape, weight, after) in seen.items():
        if state != "weight":
            continue
        gradient = seen[name, "exp_avg"][2] / (1 - 0.5)
        torch.testing.assert_close(seen[name, "exp_avg_sq"][2], (1 - 0.75) * gradient**2)
        kept = 1 - RATE * 0.5 if len(shape) > 1 else 1.0
        expected = kept * weight - RATE * gradient / (gradient.abs() + 1e-2)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def norms(rank: int, size: int, stage: int, reduce_precision: str | None) -> list[float]:
    engine = make_engine(config_of(stage, "fp32", reduce_precision=reduce_precision), rank, size)
    return [norm for _, norm in train(engine, rank, size, range(2))]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_gradients_travel_in_the_reduce_precision(stage: int) -> None:
    full, same, half = (run_ranks(norms, 2, stage, kind, timeout=120)[0] for kind in (None, "fp32", "bf16"))
    assert full == same
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


def block_calls(rank: int, size: int, recompute: str, compiled: bool | None) -> Any:
    """How often the code of a block ran in a step of one forward, and how many of each module were compiled."""
    from fmscale.models.decoder import Block

    ran: Counter[str] = Counter()
    forward = Block.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        ran["forward"] += 1
        return forward(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", counted)
        patch.setattr(nn.Module, "compile", lambda self, **_: ran.update([f"compile {type(self).__name__}"]))
        config = config_of(2, "fp32", recompute=recompute, compile=compiled)
        train(make_engine(config, rank, size), rank, size, range(1))
    return dict(ran)


def test_recompute_runs_each_block_again_and_compile_compiles_each() -> None:
    """The model has two blocks."""
    assert run_ranks(block_calls, 1, "none", None) == [{"forward": 2}]
    assert run_ranks(block_calls, 1, "full", None) == [{"forward": 4}]
    assert run_ranks(block_calls, 1, "none", True) == [{"forward": 2, "compile Block": 2}]
