"""Classes of the user's own, as an installed package would have them: `kind: tests.helpers.own:NAME`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fmscale.objectives import Inputs, Loss, Objective, SampleBatch


@dataclass(frozen=True, kw_only=True)
class Bigrams:
    """A table of logits for each token."""

    width: int = 8
    vocab_size: int | None = None
    max_seq_len: int = 64

    def build(self, vocab_size: int | None) -> nn.Module:
        assert vocab_size is not None
        if self.width == 13:
            raise ValueError("13 is no width")
        return nn.Sequential(nn.Embedding(vocab_size, self.width), nn.Linear(self.width, vocab_size, bias=False))


@dataclass(frozen=True)
class Shapeless:
    """No model: it builds none."""

    def build(self, vocab_size: int | None) -> int | None:
        return vocab_size


@dataclass(frozen=True)
class Nothing:
    """Neither a model nor an objective."""


@dataclass(frozen=True)
class Weights(Objective):
    """An objective: the sum of the weights."""

    unit = "tokens"
    scale: float = 1.0

    def collate(self, batch: SampleBatch) -> Inputs:
        return Inputs(tensors={}, weights=batch.weights, source=batch.source, bounds=batch.bounds)

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        total = inputs.weights.sum() * self.scale
        return Loss(sum=total, count=torch.ones(()), by_sample=inputs.weights.sum(1).expand(2, -1))
