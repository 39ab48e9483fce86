"""Classes of the user's own, as an installed package would have them: `kind: tests.helpers.own:NAME`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmscale.objectives import Inputs, Loss, Objective, SampleBatch
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo


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


class KeptCalls:
    """A sink whose calls are lines of a file."""

    def __init__(self, config: "Kept", run: RunInfo) -> None:
        self._config = config
        self._call("open", {"name": run.name, "first_step": run.first_step, "steps": run.config["train"]["steps"]})

    def step(self, record: Record) -> None:
        self._call("step", dict(record))

    def event(self, record: Record) -> None:
        self._call("event", dict(record))

    def close(self, outcome: Ending) -> None:
        self._call("close", outcome)

    def _call(self, method: str, value: Any) -> None:
        with open(self._config.path, "a") as file:
            file.write(json.dumps([method, value]) + "\n")
        if method in self._config.fails:
            raise OSError(f"no {method} today, api_key=hunter2hunter2")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A sink that keeps its calls in a file, some of which fail."""

    path: str
    fails: tuple[str, ...] = ()

    def open(self, run: RunInfo) -> KeptCalls:
        return KeptCalls(self, run)

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return [tuple(json.loads(line)) for line in Path(self.path).read_text().splitlines()]
