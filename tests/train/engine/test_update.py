"""Effects of the settings of optimizer, reduction, recompute and compile, by the engine's numbers."""

import dataclasses
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch

from fmscale.config import Config, OptimizerConfig
from tests.helpers.ranks import run_ranks
from tests.train.engines import ROWS, T, config_of, held, make_engine, rows_of, train

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
    """Loshchilov and Hutter 2019, algorithm 2, at t = 1: fresh moments of the gradient g are known."""
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
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7, msg=partial("{}: {}".format, name))


def refused(rank: int, size: int, config: Config) -> Any:
    """Norms that `accept` got and that the update has; the state before a refused step, behind it, behind that step
    taken, and of another engine that took it at once.
    """
    engine = make_engine(config, rank, size)
    norms: list[float] = []
    states = [held(engine, save=True)]
    first, stop = rank * ROWS // size, (rank + 1) * ROWS // size
    engine.backward(engine.forward(rows_of(0, first, stop, ROWS // size)).sum / (ROWS * (T - 1)), last=True)

    def refuse(norm: float) -> bool:
        norms.append(norm)
        return False

    update = engine.step(RATE, refuse)
    states.append(held(engine, save=True))
    assert (update.applied, engine.updates) == (False, 0)
    train(engine, rank, size, range(1))
    states.append(held(engine, save=True))
    other = make_engine(config, rank, size)
    train(other, rank, size, range(1))
    states.append(held(other, save=True))
    return norms, update.grad_norm, [[entry[-1] for entry in state] for state in states]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_a_refused_step_leaves_no_trace(stage: int, precision: str) -> None:
    """All ranks are asked once, with the norm of all gradients."""
    ranks = run_ranks(refused, 2, config_of(stage, precision), timeout=120)
    assert len({tuple(norms) for norms, *_ in ranks}) == 1
    for norms, norm, (before, behind, taken, other) in ranks:
        assert norms == [norm]
        assert norm > 0
        torch.testing.assert_close(behind, before, rtol=0, atol=0)
        torch.testing.assert_close(taken, other, rtol=0, atol=0)
        assert not all(torch.equal(one, two) for one, two in zip(taken, before, strict=True))


def alone(rank: int, size: int) -> tuple[Any, Any, int]:
    """A parameter before and after a step without its gradient, and the collectives of the backward, of one rank."""
    engine = make_engine(dataclasses.replace(config_of(0, "fp32"), optimizer=ADAMW), rank, size)
    before = held(engine, save=True)[0]
    weight = next(p for p in engine.module.parameters() if p.numel() == before[4].numel())
    with pytest.MonkeyPatch.context() as patch:
        reduced: list[Any] = []
        patch.setattr("deepspeed.comm.all_reduce", lambda *args, **rest: reduced.append(args))
        loss = engine.forward(rows_of(0, 0, ROWS, ROWS))
        weight.requires_grad_(False)
        engine.backward(loss.sum, last=True)
        weight.requires_grad_(True)
    engine.step(RATE)
    return before[4], held(engine, save=True)[0][4], len(reduced)


def test_a_rank_alone_reduces_nothing_and_decays_all() -> None:
    """A parameter that the loss did not use decays, as among several ranks, whose sum of gradients is 0."""
    [(before, after, reduced)] = run_ranks(alone, 1, timeout=120)
    assert reduced == 0
    torch.testing.assert_close(after, before * (1 - RATE * 0.5))


def norms(rank: int, size: int, stage: int, reduce_precision: str | None) -> list[float]:
    engine = make_engine(config_of(stage, "fp32", reduce_precision=reduce_precision), rank, size)
    return [norm for _, norm in train(engine, rank, size, range(2))]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_gradients_travel_in_the_reduce_precision(stage: int) -> None:
    full, half = (run_ranks(norms, 2, stage, kind, timeout=120)[0] for kind in (None, "bf16"))
    if stage == 0:
        assert run_ranks(norms, 2, stage, "fp32", timeout=120)[0] == full
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


def compiled_training(rank: int, size: int, stage: int, recompute: str, dropout: float) -> Any:
    """Losses, norms and weights of two steps, eager and compiled; forward runs a step of blocks and of their compiled
    code; graphs and graph breaks.
    """
    from torch._dynamo import register_backend, utils
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func

    from fmscale.models.layers.feed_forward import FeedForward

    ran = Counter[str]()
    name, real = f"counting-{id(ran)}", FeedForward.forward

    def counted(self: Any, *args: Any) -> Any:
        ran["blocks"] += 1
        return real(self, *args)

    def forward(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(lambda *values: (ran.update(["compiled"]), graph(*values))[1])

    def backward(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph)

    def trained(compiled: bool) -> Any:
        config = config_of(stage, "fp32", recompute=recompute, compile=compiled)
        model = dataclasses.replace(config.decoder("this test"), num_layers=4, dropout=dropout)
        config = dataclasses.replace(config, model=model)
        engine = make_engine(config, rank, size, compiler=name)
        torch.manual_seed(0)
        return train(engine, rank, size, range(2)), [entry[-1] for entry in held(engine, save=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedForward, "forward", counted)
        eager = trained(False)
    register_backend(aot_autograd(fw_compiler=forward, bw_compiler=backward), name)
    torch._dynamo.reset()
    utils.counters.clear()
    compiled = trained(True)
    graphs, breaks = utils.counters["stats"]["unique_graphs"], sum(utils.counters["graph_break"].values())
    torch._dynamo.reset()
    return eager, compiled, {kind: count // 2 for kind, count in ran.items()}, graphs, breaks


@pytest.mark.parametrize(
    ("stage", "recompute", "dropout"),
    [
        (2, "none", 0.0),
        (2, "full", 0.0),
        pytest.param(0, "full", 0.2, marks=pytest.mark.slow),
        pytest.param(3, "none", 0.0, marks=pytest.mark.slow),
        pytest.param(3, "full", 0.0, marks=pytest.mark.slow),
    ],
)
def test_blocks_compile_with_and_without_recompute(stage: int, recompute: str, dropout: float) -> None:
    """Four blocks and two numbers of documents share one graph. At stage 3 the hooks that fetch parameters break it."""
    [(eager, compiled, ran, graphs, breaks)] = run_ranks(compiled_training, 1, stage, recompute, dropout, timeout=600)
    runs = 8 if recompute == "full" else 4
    assert ran["blocks"] == runs
    if stage < 3:
        assert graphs == 1
        assert breaks == 0
        assert ran["compiled"] == runs
    else:
        assert graphs >= 1
    torch.testing.assert_close(torch.tensor(compiled[0]), torch.tensor(eager[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled[1], eager[1], rtol=1e-3, atol=1e-5)
