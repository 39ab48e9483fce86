"""Steps of preference objectives by engines on real ranks, and the same losses written out in fp64 on one process."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmscale.config import BatchShape, Config, ModelConfig, OptimizerConfig, TrainConfig
from fmscale.config.data import DataConfig, SourceConfig
from fmscale.config.objective import ObjectiveConfig
from fmscale.data.forward import FlatForward
from fmscale.data.reading.maker import concatenated
from fmscale.data.samples.protocol import Draw, Sample
from fmscale.data.samples.rendered import RenderedSamples
from fmscale.runtime.axes import Axis
from fmscale.train.engine.module import build_engine
from fmscale.train.seeds import seed_dropout
from fmscale.train.step import train_step
from tests.helpers.deepspeed_numbers import restart_numbers
from tests.helpers.rendered import random_rankings
from tests.train.engines import held

VOCAB, PAIRS = 61, 12


def config_of(objective: ObjectiveConfig, stage: int, **train: Any) -> Config:
    """AdamW's first moment after one step is then (1 - beta) times the gradient: nothing is clipped."""
    return Config(
        data=DataConfig(sources=(SourceConfig(dataset="none"),)),
        model=ModelConfig(
            num_layers=2,
            dim=16,
            num_heads=2,
            hidden_dim=24,
            max_seq_len=64,
            init_std=0.3,
            score=objective.kind == "reward",
        ),
        objective=objective,
        train=TrainConfig(**{"zero_stage": stage, "precision": "fp32", "seed": 5, **train}),
        optimizer=OptimizerConfig(lr=1e-2, clip_norm=0.0),
    )


def samples(seed: int, answers: int = 2, reference: bool = False) -> list[Sample]:
    """The samples of a step; with `reference` a value from -30 to 0 for each document."""
    spec = RenderedSamples(too_long="refuse", max_tokens=None, reference="made" if reference else None)
    rng, out = np.random.default_rng(seed), []
    for record in random_rankings(PAIRS, seed, answers=answers, vocab=VOCAB).to_pylist():
        sample = spec.make(spec.decode(record), Draw(0, 0), 1000)
        if reference:
            sample.tensors["reference"] = rng.uniform(-30, 0, 2).astype(np.float32)
        out.append(sample)
    return out


def forward_of(chosen: Sequence[Sample], reference: bool = False) -> FlatForward:
    """A flat forward of the samples; none of them gives padding alone."""
    parts = RenderedSamples(too_long="refuse", max_tokens=None, reference="made" if reference else None).parts
    made, weights, ends, bounds = concatenated(parts, chosen)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
    count = len(chosen)
    return FlatForward(
        parts={name: torch.from_numpy(value) for name, value in made.items()},
        weights=torch.from_numpy(weights),
        positions=torch.from_numpy(positions.astype(np.int64)[None]),
        cu_seqlens=torch.from_numpy(ends),
        bounds=torch.from_numpy(bounds),
        k=np.arange(count, dtype=np.uint64),
        sample_source=np.zeros(count, dtype=np.uint16),
        row=np.arange(count, dtype=np.uint64),
        step=0,
        last_of_step=True,
        pieces=[],
    )


def run_steps(rank: int, size: int, cases: Sequence[tuple[Config, int, int]]) -> list[Any]:
    """Two steps of each case (config, forwards, answers) as this rank: sums of each, and the state after the first."""
    out = []
    for config, forwards, answers in cases:
        restart_numbers()
        batch = BatchShape(global_batch=PAIRS, micro_batch=1, accumulation=1, dp_size=size, forward_tokens=1024)
        engine = build_engine(config, Axis(rank=rank, size=size), VOCAB, batch, "cpu")
        found: list[Any] = []
        for step in range(2):
            mine = samples(step, answers)[rank::size]
            inputs = [engine.objective.collate(forward_of(mine[number::forwards])) for number in range(forwards)]
            result = train_step(
                engine,
                inputs,
                count=float(PAIRS),
                sources=1,
                rate=1e-2,
                seed=partial(seed_dropout, 7, step, rank),
            )
            sums = {name: float(value) for name, value in result.metrics.items()}
            loss, weight = result.loss_by_source[:, 0].tolist()
            found.append({"loss": float(result.loss_sum), "of source": loss, "weight": weight, **sums})
            if step == 0:
                state = held(engine, save=True)
        out.append((found, state))
    return out


def exact(model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 log-probs, lengths, and hidden states for the score, of the documents of a sample, each read alone."""
    logps, lengths, hiddens, at = [], [], [], 0
    for piece in sample.pieces:
        part = slice(at, at + piece)
        tokens, labels, weights = (torch.from_numpy(sample.tensors[n][part]) for n in ("tokens", "labels", "weights"))
        hidden = model(tokens[None])[0]
        table = model.head(hidden).log_softmax(-1)  # type: ignore[operator]
        logps.append((table.gather(1, labels[:, None])[:, 0] * weights.double()).sum())
        lengths.append(weights.sum())
        read = model(torch.cat((tokens, labels[-1:]))[None])[0]
        hiddens.append(read[int(weights.nonzero().max()) + 1])
        at += piece
    return torch.stack(logps), torch.stack(lengths).double(), torch.stack(hiddens)
