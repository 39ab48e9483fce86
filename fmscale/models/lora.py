"""Low-rank adapters around the linear layers of a model (LoRA, rsLoRA, DoRA), made from outside of the model.

A wrapped layer keeps the name of its weight, and gets `lora_a` (rank, in), `lora_b` (out, rank) and, for DoRA,
`magnitude` (out,) beside it: `layers.3.attention.wq.lora_a`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fmscale.config.adapter import ALL_LINEAR, LoraConfig
from fmscale.config.kinds import Own
from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.protocol import build, parameters_of
from fmscale.models.weights import Whole

TINY = 1e-30
"""Least length of a row that DoRA divides by: a row of zeros stays zero."""


class LoraLinear(nn.Module):
    """A linear layer with a frozen weight and a low-rank change of it. All parameters are its own, so that engines
    that shard by module gather them together.

    `magnitude` is the change of the row lengths m - |W|, not m: it begins at 0 for any base, at any stage, and bf16
    rounds the change alone.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        empty = partial(torch.empty, dtype=layer.weight.dtype, device=layer.weight.device)
        self.lora_a = nn.Parameter(empty(config.rank, layer.in_features))
        self.lora_b = nn.Parameter(empty(layer.out_features, config.rank))
        if config.kind == "dora":
            self.magnitude = nn.Parameter(empty(layer.out_features))
        self.dropout = nn.Dropout(config.dropout)
        self.scale, self.dora, self.on = config.scale, config.kind == "dora", True
        self.fixed_ratio: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        if not self.on:
            return linear(x, self.weight, self.bias)
        rows = x.flatten(0, -2)
        y = linear(rows, self.weight, None if self.dora else self.bias)
        low = linear(self.dropout(rows), self.lora_a)
        # In place: neither the product nor its sum with y is kept for backward.
        y = y.addmm_(low, self.lora_b.t(), alpha=self.scale).view(*x.shape[:-1], -1)
        if self.dora:
            ratio = self.ratio() if self.fixed_ratio is None else self.fixed_ratio
            # The ratio is near 1 and stays fp32: bf16 would round it in steps of 0.4 %.
            y = (y * ratio).to(x.dtype)
            y = y if self.bias is None else y + self.bias
        return y

    def ratio(self) -> Tensor:
        """DoRA's factor of each row, fp32 (out,): its magnitude by its length, which is a constant in backward
        (section 4.3 of the paper).
        """
        with torch.no_grad():
            weight = self.weight.float()
            changed = torch.addmm(weight, self.lora_b.float(), self.lora_a.float(), alpha=self.scale)
        return _ratio(weight, changed, self.magnitude)


def _ratio(weight: Tensor, changed: Tensor, magnitude: Tensor) -> Tensor:
    with torch.no_grad():
        was, now = (row_lengths(each).clamp_min(TINY) for each in (weight, changed))
    return (was + magnitude.float()) / now


def row_lengths(weight: Tensor) -> Tensor:
    """|W| by row, fp32 (out,)."""
    lengths: Tensor = torch.linalg.vector_norm(weight.float(), dim=1)
    return lengths


def wrap(model: nn.Module, config: LoraConfig) -> list[str]:
    """Freeze the model but for the score of a reward model, and put an adapter without initial values around each
    targeted layer; return their names.

    Raises ConfigError for a pattern that names no linear layer of a block.
    """
    names = linears(model)
    chosen = {pattern: _matching(names, pattern) for pattern in config.targets}
    for pattern, matches in chosen.items():
        if not matches:
            raise ConfigError(
                "a pattern of adapter.targets names no linear layer of a block",
                found=pattern,
                remedy=f"Layers that can have an adapter: {', '.join(dict.fromkeys(map(in_block, names))) or 'none'}. "
                "Embedding and head never have one.",
            )
    model.requires_grad_(False)
    if isinstance(score := getattr(model, "score", None), nn.Module):
        score.requires_grad_(True)  # a base that is no reward model has none
    targets = [name for name in names if any(name in matches for matches in chosen.values())]
    for name in targets:
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), last, LoraLinear(layer, config))
    wrapped: Any = model
    wrapped.adapters_off = partial(adapters_off, model)  # objectives know no module by its class
    return targets


def linears(model: nn.Module) -> list[str]:
    """Names of the layers that can have an adapter: linear layers of `model.layers`, or of all of a model without
    blocks. A class that computes something else than nn.Linear is none.
    """
    layers = getattr(model, "layers", None)
    inside, begin = (layers, "layers.") if isinstance(layers, nn.Module) else (model, "")
    return [
        begin + name
        for name, module in inside.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    ]


def in_block(name: str) -> str:
    """The name of a layer inside its block: layers.3.attention.wq -> attention.wq."""
    parts = name.split(".", 2)
    return parts[2] if len(parts) == 3 and parts[0] == "layers" and parts[1].isdecimal() else name


def _matching(names: list[str], pattern: str) -> set[str]:
    if pattern == ALL_LINEAR:
        return set(names)
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(in_block(name), pattern)}


def count_parameters(
    model: ModelConfig | Own, adapter: LoraConfig | None, *, vocab_size: int | None
) -> tuple[int, int]:
    """Numbers of trained and of frozen parameters of a run; an adapter's model is built without memory, on the meta
    device. Frozen parameters of a run without an adapter are not counted. Raises ConfigError as `build` and `wrap`.
    """
    if adapter is None:
        return parameters_of(model, vocab_size), 0
    with torch.device("meta"):
        built: nn.Module = build(model, vocab_size=vocab_size)
        wrap(built, adapter)
    counts = {True: 0, False: 0}
    for parameter in built.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]


@torch.no_grad()
def draw_adapters(model: nn.Module, generator: torch.Generator, whole: Whole = nullcontext) -> None:
    """Draw A uniformly in +-1/sqrt(in), which is kaiming_uniform(sqrt 5), and fill all else with zeros: the base is
    read later, and with B = 0 the model is its base. `whole` as in `draw_weights`.
    """
    for name, parameter in sorted(model.named_parameters()):
        with whole(parameter):
            parameter.zero_()
            if name.endswith(".lora_a"):
                numbers = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
                bound = parameter.shape[1] ** -0.5
                parameter.copy_(numbers.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def merged(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None, scale: float) -> Tensor:
    """The weight (out, in), fp32, with which a plain linear layer computes as the adapted layer does."""
    weight = weight.float()
    changed = torch.addmm(weight, b.float(), a.float(), alpha=scale)
    return changed if magnitude is None else changed * _ratio(weight, changed, magnitude)[:, None]


@torch.no_grad()
def fix_ratios(model: nn.Module) -> None:
    """Compute DoRA's factors once, for a model whose weights no longer change: each costs a pass over the weight."""
    for layer in _layers(model):
        layer.fixed_ratio = layer.ratio() if layer.dora else None


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the model compute as its base does: the reference policy of preference losses. For use without gradients."""
    layers = [layer for layer in _layers(model) if layer.on]
    try:
        for layer in layers:
            layer.on = False
        yield
    finally:
        for layer in layers:
            layer.on = True


def _layers(model: nn.Module) -> list[LoraLinear]:
    return [module for module in model.modules() if isinstance(module, LoraLinear)]
