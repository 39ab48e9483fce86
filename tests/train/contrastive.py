"""A toy objective over pairs of halves of rows (GradCache: Gao et al., arXiv 2101.06983), and engines that train it."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fmscale.config import BatchShape, Config, ModelConfig, OptimizerConfig, TrainConfig
from fmscale.config.data import DataConfig, SourceConfig
from fmscale.data.batch import Microbatch, UnitDocuments
from fmscale.models import build
from fmscale.objectives import Gather, Inputs, Loss, Objective, SampleBatch
from fmscale.runtime.axes import Axis
from fmscale.train.engine.module import build_engine
from fmscale.train.seeds import seed_dropout
from fmscale.train.step import train_step
from tests.helpers.deepspeed_numbers import restart_numbers
from tests.train.engines import held

VOCAB, T, PAIRS = 31, 8, 12
TEMPERATURE = 0.2


class Context(NamedTuple):
    """A forward's part of the step's loss, computed before its backward."""

    features: Tensor
    gradient: Tensor
    losses: Tensor


def features(model: nn.Module, inputs: Inputs) -> Tensor:
    """[B, 2, D]: a unit vector for each half of each row."""
    halves = inputs.tensors["tokens"].reshape(-1, T // 2)
    vectors: Tensor = model(halves).mean(1)
    wide = vectors.float() if vectors.dtype == torch.bfloat16 else vectors
    return normalize(wide, dim=-1).view(len(wide) // 2, 2, -1)


def pair_losses(own: Tensor, everyone: Tensor, weights: Tensor) -> Tensor:
    """Loss of each own pair among the pairs of all ranks, both ways."""
    match = (own[:, 0] * own[:, 1]).sum(-1) / TEMPERATURE
    scores = [own[:, side] @ everyone[:, 1 - side].T / TEMPERATURE for side in (0, 1)]
    first, second = (each.masked_fill(weights == 0, -1e9) for each in scores)
    return first.logsumexp(1) + second.logsumexp(1) - 2 * match


class Contrastive(Objective):
    """Each pair against all pairs of the step, over ranks and forwards."""

    unit = "pairs"

    def collate(self, batch: SampleBatch) -> Inputs:
        weights = (batch.source >= 0).to(torch.float32)
        return Inputs(
            tensors={"tokens": batch.parts["tokens"]}, weights=weights, source=batch.source, bounds=batch.bounds
        )

    def before(self, model: nn.Module, inputs: Sequence[Inputs], gather: Gather) -> Sequence[Any]:
        assert not torch.is_grad_enabled()
        found = [features(model, each) for each in inputs]
        counts, weights = [len(each) for each in found], torch.cat([each.weights for each in inputs])
        with torch.enable_grad():
            own = torch.cat(found).requires_grad_()
            losses = pair_losses(own, gather(own), gather(weights))
            [gradient] = torch.autograd.grad((losses * weights).sum(), own)
        parts = [each.detach().split(counts) for each in (own, gradient, losses * weights)]
        return [Context(*each) for each in zip(*parts, strict=True)]

    def __call__(self, model: nn.Module, inputs: Inputs, context: Context) -> Loss:
        again = features(model, inputs)
        cached = (again * context.gradient).sum()
        by_sample = torch.stack((context.losses, inputs.weights)).float()
        metrics = {
            "loss": context.losses.sum(),
            "changed": (again.detach() - context.features).abs().sum(),
        }
        value = cached + (context.losses.sum() - cached).detach()
        return Loss(sum=value, count=inputs.weights.sum(), by_sample=by_sample, metrics=metrics)


class Direct(Contrastive):
    """The same loss with a graph from `before` to backward, through the gather: for one forward a step."""

    def before(self, model: nn.Module, inputs: Sequence[Inputs], gather: Gather) -> Sequence[Any]:
        [given] = inputs
        with torch.enable_grad():
            own = features(model, given)
            losses = pair_losses(own, gather(own), gather(given.weights))
            return [losses * given.weights]

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any) -> Loss:
        by_sample = torch.stack((context.detach(), inputs.weights)).float()
        return Loss(sum=context.sum(), count=inputs.weights.sum(), by_sample=by_sample)


def config_of(stage: int, precision: str = "fp32", dropout: float = 0.0, **train: Any) -> Config:
    """AdamW's first moment after one step is then (1 - beta) times the gradient: nothing is clipped."""
    return Config(
        data=DataConfig(sources=(SourceConfig(dataset="none"),), sequence_length=T),
        model=ModelConfig(
            num_layers=2, dim=16, num_heads=2, hidden_dim=24, max_seq_len=T, tied=True, init_std=0.3, dropout=dropout
        ),
        train=TrainConfig(zero_stage=stage, precision=precision, seed=5, **train),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-3, clip_norm=0.0),
    )


def pairs(first: int, stop: int, rows: int) -> Microbatch:
    """Pairs [first, stop) of the step, filled up to `rows`."""
    tokens = torch.randint(VOCAB, (PAIRS, T + 1), generator=torch.Generator().manual_seed(0))
    fill = torch.zeros((rows - (stop - first), T + 1), dtype=torch.int64)
    k = np.arange(first, stop, dtype=np.uint64)
    return Microbatch(
        tokens=torch.cat((tokens[first:stop], fill)),
        k=k,
        row_source=(k % 2).astype(np.uint16),
        row=k,
        step=0,
        last_of_step=True,
        documents=[UnitDocuments(ends=np.array([T + 1]), offset=0, ids=None)] * len(k),
        offsets=[0] * len(k),
    )


def step(rank: int, size: int, config: Config, objective: Objective, accumulation: int) -> Any:
    """A step as this rank: (loss, losses by source, metrics, pieces of state)."""
    restart_numbers()
    micro = -(-PAIRS // size // accumulation)
    batch = BatchShape(global_batch=PAIRS, micro_batch=micro, accumulation=accumulation, dp_size=size)
    engine = build_engine(config, Axis(rank=rank, size=size), VOCAB, batch, "cpu", objective=objective)
    low, high = rank * PAIRS // size, (rank + 1) * PAIRS // size
    cuts = [min(low + i * micro, high) for i in range(accumulation + 1)]
    inputs = [objective.collate(pairs(a, b, micro)) for a, b in itertools.pairwise(cuts)]
    result = train_step(
        engine,
        inputs,
        count=float(PAIRS),
        sources=2,
        rate=1e-3,
        seed=partial(seed_dropout, 7, 0, rank),
    )
    metrics = {name: value.item() for name, value in result.metrics.items()}
    return result.loss_sum.item(), result.loss_by_source.tolist(), metrics, held(engine, save=True)


def wanted() -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all pairs and the gradient of their mean, in fp64 on one process, without cached gradients."""
    config = config_of(0)
    model = build(config.decoder("this test"), vocab_size=VOCAB)
    model.init_weights(torch.Generator().manual_seed(config.train.seed))
    model.double()
    inputs = Contrastive().collate(pairs(0, PAIRS, PAIRS))
    own = features(model, inputs)
    losses = pair_losses(own, own, inputs.weights)
    torch.autograd.backward(losses.sum() / PAIRS)
    gradients = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
    return losses.tolist(), gradients
