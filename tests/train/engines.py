"""Small engines on real ranks, and their state, for the tests of the engine."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from fmscale.config import BatchShape, Config, ModelConfig, OptimizerConfig, TrainConfig
from fmscale.config.data import DataConfig, SourceConfig
from fmscale.objectives.protocol import Inputs
from fmscale.runtime.axes import Axis
from fmscale.train.engine.deepspeed import DeepSpeedEngine
from fmscale.train.engine.module import build_engine
from fmscale.train.step import train_step
from tests.helpers.deepspeed_numbers import restart_numbers

VOCAB, T, ROWS = 61, 24, 6
"""Odd sizes, so that partitions end inside tensors and are padded."""


GEMMA: dict[str, Any] = {
    "qk_norm": True, "qkv_bias": True, "post_norms": True, "norm_offset": 1.0, "activation": "gelu_tanh",
    "embedding_scale": 4.0, "window": 7, "global_layers": (1,), "softcap": 5.0, "logit_softcap": 1.0, "tied": True,
}  # fmt: skip
"""All that Qwen and Gemma add to a Llama, together."""


def config_of(stage: int, precision: str, model: Mapping[str, Any] | None = None, **train: Any) -> Config:
    return Config(
        data=DataConfig(sources=(SourceConfig(dataset="none"),), sequence_length=T),
        model=ModelConfig(
            num_layers=2, dim=16, num_heads=2, num_kv_heads=1, hidden_dim=24, max_seq_len=T, **model or {}
        ),
        train=TrainConfig(zero_stage=stage, precision=precision, seed=5, **train),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-2, clip_norm=0.5),
    )


def make_engine(
    config: Config, rank: int, size: int, accumulation: int = 1, compiler: str = "inductor", cores: int = 1
) -> DeepSpeedEngine:
    restart_numbers()
    micro = -(-ROWS // size // accumulation)
    batch = BatchShape(global_batch=ROWS, micro_batch=micro, accumulation=accumulation, dp_size=size)
    return build_engine(config, Axis(rank=rank, size=size), VOCAB, batch, "cpu", compiler=compiler, cores=cores)


def rows_of(step: int, first: int, stop: int, rows: int) -> Inputs:
    """Rows [first, stop) of a step's global batch, filled up to `rows`: two documents each, but for a single one in row
    0 of odd steps, so that steps differ in their number of documents.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (ROWS, T + 1), generator=generator)[first:stop]
    fill = torch.zeros((rows - len(tokens), T + 1), dtype=torch.int64)
    tokens = torch.cat((tokens, fill))
    cut = 5 + step % 7
    positions = torch.arange(T).where(torch.arange(T) < cut, torch.arange(T) - cut).expand(rows, -1)
    weights = torch.ones(rows, T)
    weights[:, cut - 1] = 0
    weights[stop - first :] = 0
    starts = (torch.arange(rows)[:, None] * T + torch.tensor([[0, cut]])).flatten()
    if step % 2 and not first:
        positions = torch.cat((torch.arange(T)[None], positions[1:]))
        starts = starts[starts != cut]
    return Inputs(
        tensors={
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "positions": positions.contiguous(),
            "cu_seqlens": torch.cat((starts, torch.tensor([rows * T]))).to(torch.int32),
        },
        weights=weights,
        source=torch.arange(rows) % 2,
        bounds=torch.arange(0, rows * T + 1, T, dtype=torch.int32),
    )


def microbatches(step: int, rank: int, size: int, accumulation: int) -> list[Inputs]:
    """This rank's share of a step, in `accumulation` forwards of equal size."""
    first, stop = rank * ROWS // size, (rank + 1) * ROWS // size
    micro = -(-ROWS // size // accumulation)
    bounds = [min(first + i * micro, stop) for i in range(accumulation + 1)]
    return [rows_of(step, a, b, micro) for a, b in itertools.pairwise(bounds)]


def train(
    engine: DeepSpeedEngine, rank: int, size: int, steps: range, accumulation: int = 1
) -> list[tuple[float, float]]:
    """(loss of the global batch, gradient norm) of each step."""
    out = []
    for step in steps:
        result = train_step(
            engine,
            microbatches(step, rank, size, accumulation),
            count=ROWS * (T - 1),
            sources=2,
            rate=1e-2,
            seed=lambda i: None,
        )
        loss = result.loss_sum.clone()
        torch.distributed.all_reduce(loss)
        out.append((loss.item() / result.count, result.update.grad_norm))
    return out


def held(engine: DeepSpeedEngine, *, save: bool) -> list[tuple[str, str, tuple[int, ...], int, torch.Tensor]]:
    """Copies of the engine's pieces: (name, state, shape, start, values)."""
    return [(p.name, p.state, p.shape, p.start, p.tensor.clone()) for p in engine.pieces(save=save)]


def joined(parts: list[list[tuple[str, str, tuple[int, ...], int, torch.Tensor]]]) -> dict[Any, torch.Tensor]:
    """Whole tensors from all ranks' pieces; fails unless they tile each exactly once."""
    whole: dict[Any, torch.Tensor] = {}
    seen: dict[Any, torch.Tensor] = {}
    for name, state, shape, start, values in (piece for rank in parts for piece in rank):
        key, count = (name, state), int(torch.tensor(shape).prod())
        whole.setdefault(key, torch.zeros(count))[start : start + len(values)] = values.float()
        seen.setdefault(key, torch.zeros(count, dtype=torch.int32))[start : start + len(values)] += 1
    assert all(bool((count == 1).all()) for count in seen.values())
    return whole
