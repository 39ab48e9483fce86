"""The model of a config: our decoder, or the module that a class of the user's own builds."""

import traceback
from typing import Protocol, overload

import torch
from torch import nn

from fmscale.config.derived import num_parameters
from fmscale.config.kinds import Own, kind_of
from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.decoder import Decoder


class OwnModel(Protocol):
    """A class that `model.kind` names as package.module:Name: a frozen dataclass with this method.

    Its fields `vocab_size` and `max_seq_len`, if it has them, are checked against the data. The module may have
    `init_weights(generator, whole)`, `layers` (blocks to compile and recompute), and `head` (for the objective).
    """

    def build(self, vocab_size: int | None) -> nn.Module:
        """The module on torch's default device, which may be "meta". `vocab_size`: the tokenizer's; None without."""


@overload
def build(config: ModelConfig, *, vocab_size: int | None) -> Decoder: ...
@overload
def build(config: Own, *, vocab_size: int | None) -> nn.Module: ...
def build(config: ModelConfig | Own, *, vocab_size: int | None) -> nn.Module:
    """The model of the section `model`, with uninitialised weights, on torch's default device and in its default type.

    Raises ConfigError for another vocabulary than the section's, and for a class whose `build` is missing or fails.
    """
    if type(config) is ModelConfig:
        if vocab_size is None or config.vocab_size not in (None, vocab_size):
            raise ConfigError(
                "The model is built for another vocabulary than its config has",
                found=f"{vocab_size}, model.vocab_size is {config.vocab_size}",
                remedy="Leave model.vocab_size null to take the tokenizer's.",
            )
        return Decoder(config, vocab_size)
    make = getattr(config, "build", None)
    try:
        model = make(vocab_size) if callable(make) else None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"the model cannot be built: {type(error).__name__} at {frame.filename}:{frame.lineno}: {error}",
            found=kind_of(config),
            remedy="Correct its `build`, or the keys of the section model.",
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.kind names a class whose `build` {'returns no module' if callable(make) else 'is missing'}",
            found=kind_of(config),
            remedy="Give it `def build(self, vocab_size: int | None) -> torch.nn.Module`.",
        )
    return model


def parameters_of(config: ModelConfig | Own, vocab_size: int | None) -> int:
    """Number of trained parameters; a module of the user's own is built on the meta device, without memory."""
    if type(config) is ModelConfig:
        assert vocab_size is not None, "a decoder without a vocabulary is refused before"
        return num_parameters(config, vocab_size)
    with torch.device("meta"):
        model = build(config, vocab_size=vocab_size)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
