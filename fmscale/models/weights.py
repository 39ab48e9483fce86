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
    model: nn.Module, generator: torch.Generator, std: Callable[[str], float], whole: Whole = nullcontext
) -> None:
    """Fill matrices with normal numbers of the deviation `std(name)` and vectors (norms) with ones.

    Drawn in fp32, on the generator's device, in the order of the names, so that neither the model's device nor its
    type changes them: with a CPU generator every rank draws the same. `whole` is the context in which a
    parameter can be filled, for ranks that keep only a part of each: a parameter at a time, to bound the memory.
    """
    for name, parameter in sorted(model.named_parameters()):
        with whole(parameter):
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
            parameter.copy_(drawn.normal_(0.0, std(name), generator=generator))


@torch.no_grad()
def load_weights(
    model: nn.Module, read: Callable[[str], Tensor], shapes: dict[str, tuple[int, ...]] | None = None
) -> None:
    """Copy `read(name)` into every parameter of the model, one after another, converting its type.

    `shapes` says what the source has; with it, a model that does not fit is refused before anything is read.
    Raises ConfigError with the tensors that differ, and how.
    """
    parameters = dict(model.named_parameters())
    if shapes is not None:
        wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        _compare(wanted, shapes)
    for name, parameter in parameters.items():
        tensor = read(name)
        if tensor.shape != parameter.shape:
            _compare({name: tuple(parameter.shape)}, {name: tuple(tensor.shape)})
        parameter.copy_(tensor)


def _compare(wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    differences = [
        f"{name}: {given.get(name, 'missing')}, the model has {wanted.get(name, 'no such tensor')}"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    if differences:
        more = len(differences) - SHOWN
        raise ConfigError(
            "The weights are those of another model",
            found="; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            remedy="Take the model section of the config that they were trained with.",
        )
