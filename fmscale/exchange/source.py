"""A model that others made: its config and tensors, its tokenizer with the tokens that frame texts, its small files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmscale.checkpoint.format.layout import Tensor
from fmscale.config import ModelConfig
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError
from fmscale.models import build
from fmscale.models.weights import compare_shapes
from fmscale.store.datasets.templates import ChatTemplate

SPECIALS = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
"""Special tokens that a template may name as NAME_token."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model of one format, opened; `read` alone reads tensors."""

    name: str
    """Name of the file or folder."""
    config: ModelConfig
    """With `vocab_size`, the rows of the embedding."""
    tensors: list[Tensor]
    """All weights, by fmscale's names."""
    read: Callable[[str], torch.Tensor]
    """Gives a tensor by fmscale's name, on the CPU."""
    tokenizer: bytes
    """A tokenizer.json."""
    template: ChatTemplate | None
    """Chat template, if the model has one."""
    bos: int | None
    """Token before each text, if the tokenizer puts one there."""
    ends: list[int]
    """Tokens that end an answer; the first also ends a turn of the template."""
    files: Mapping[str, bytes]
    """Files beside weights and tokenizer.json, by name, for the way back."""


def check(source: ModelSource) -> None:
    """Raise ConfigError unless the tensors are those of the config, and the embedding has a row for each token."""
    with torch.device("meta"):
        model = build(source.config, vocab_size=source.config.vocab_size)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    compare_shapes(shapes, {tensor.name: tensor.shape for tensor in source.tensors})
    rows, tokens = source.config.vocab_size or 0, from_json(source.tokenizer, "the tokenizer").vocab_size
    if tokens > rows:
        raise ConfigError(
            "The vocabulary has grown beyond the embedding: the tokenizer has tokens without a row",
            found=f"{tokens} tokens, {rows} rows",
            remedy="Save the model after `model.resize_token_embeddings(len(tokenizer))`, or take the tokenizer that "
            "it was trained with.",
        )


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """The object of a JSON file. Raises ConfigError for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            "A file of the model is no JSON", found=f"{where}: {error}", remedy="Download it again."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError("A file of the model is no JSON object", found=where, remedy="Download it again.")
    return value


def order_ends(ends: list[int], template: ChatTemplate | None, texts: Mapping[int, str]) -> list[int]:
    """The ends of an answer, those first that the template writes: such a token ends a turn. Models name several, of
    which some end a text in pretraining; `texts` has the tokens' texts.
    """
    written = template.text if template else ""
    if template and "eos_token" in written:
        written += template.special_tokens.get("eos_token", "")
    return sorted(dict.fromkeys(ends), key=lambda i: not texts.get(i) or texts[i] not in written)
