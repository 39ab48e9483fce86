"""Sources of weights: a generator, or a function from names to tensors."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fmscale.errors import ConfigError

Whole = Callable[[nn.Parameter], AbstractContextManager[object]]

SHOWN = 5
"""Differing tensors that an error names."""


@torch.no_grad()
def draw_weights(
    model: nn.Module,
    generator: torch.Generator,
    std: Callable[[str], float],
    whole: Whole = nullcontext,
    *,
    norm: float = 1.0,
) -> None:
    """Fill matrices with normal numbers of standard deviation `std(name)`, biases with 0, other vectors with `norm`.

    The numbers are drawn in fp32, on the generator's device, in the order of the names. Neither the model's device
    nor its type changes them: with a CPU generator every rank draws the same numbers. `whole` is the context in which
    a rank with only a part of a parameter has all of it; one parameter at a time is whole, to bound the memory.
    """
    for name, parameter in sorted(model.named_parameters()):
        with whole(parameter):
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else norm)
                continue
            numbers = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
            parameter.copy_(numbers.normal_(0.0, std(name), generator=generator))


@torch.no_grad()
def load_weights(
    model: nn.Module, read: Callable[[str], Tensor], shapes: dict[str, tuple[int, ...]] | None = None
) -> None:
    """Copy `read(name)` into every parameter of the model, one after another, converting its type.

    `shapes` has the source's tensors; with it, a model that does not fit is refused before any tensor is read.
    Raises ConfigError with the differing tensors and their shapes.
    """
    parameters = dict(model.named_parameters())
    if shapes is not None:
        compare_shapes({name: tuple(parameter.shape) for name, parameter in parameters.items()}, shapes)
    for name, parameter in parameters.items():
        tensor = read(name)
        if tensor.shape != parameter.shape:
            compare_shapes({name: tuple(parameter.shape)}, {name: tuple(tensor.shape)})
        parameter.copy_(tensor)


def compare_shapes(model: dict[str, tuple[int, ...]], source: dict[str, tuple[int, ...]]) -> None:
    """Raise ConfigError, with names and shapes, unless source and model have the same tensors."""
    differences = [
        f"{name}: {source.get(name, 'missing')}, the model has {model.get(name, 'no such tensor')}"
        for name in sorted(model.keys() | source.keys())
        if model.get(name) != source.get(name)
    ]
    if differences:
        more = len(differences) - SHOWN
        raise ConfigError(
            "The weights are those of another model",
            found="; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            remedy="Take the model section of the config that they were trained with.",
        )
