"""A folder of config.json and safetensors, opened: names, config and weights of a model in Hugging Face's format."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fmscale.config.checks import InvalidField
from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.hf.convert import from_hf_config, hf_names


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """A model in Hugging Face's format in a local folder."""

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the tensors by fmscale's names."""
    files: list[Path]
    """config.json and the files with the tensors."""
    read: Callable[[str], Tensor]
    """Function that reads a tensor by fmscale's name, on the CPU."""


def open_hf_folder(path: Path) -> HfFolder:
    """Open a folder with config.json and safetensors, in one file or several; download nothing.

    `load_weights(build(f.config, vocab_size=f.config.vocab_size), f.read, f.shapes)` makes the model and refuses
    other tensors. Raises ConfigError for a folder without these files, or a config that this decoder cannot be.
    """
    files = _weight_files(path)
    if not files or not (path / "config.json").is_file():
        remedy = "The folder must have config.json and *.safetensors (no pickled .bin)."
        raise ConfigError("Not a model in Hugging Face's format", found=str(path), remedy=remedy)
    try:
        config = from_hf_config(json.loads((path / "config.json").read_bytes()))
    except (ValueError, TypeError, AttributeError, InvalidField, RecursionError) as error:
        raise ConfigError(
            "The config of the model cannot be used", found=f"{path}/config.json: {error}", remedy="Download it again."
        ) from error
    names = {hf_name: name for name, hf_name in hf_names(config).items()}
    shapes, places = {}, {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ConfigError(
                "A file of the model is damaged", found=f"{file}: {error}", remedy="Download it again."
            ) from error
        with opened:
            for hf_name in opened.keys():  # noqa: SIM118 (not a mapping)
                if (hf_name == "lm_head.weight" and config.tied) or hf_name.endswith("rotary_emb.inv_freq"):
                    continue  # a copy of the embedding; a table that follows from the config
                name = names.get(hf_name, hf_name)
                shapes[name] = tuple(opened.get_slice(hf_name).get_shape())
                places[name] = (file, hf_name)

    def read(name: str) -> Tensor:
        file, hf_name = places[name]
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(hf_name)
            return tensor

    return HfFolder(config=config, shapes=shapes, files=[path / "config.json", *files], read=read)


def _weight_files(path: Path) -> list[Path]:
    """The files of the index; without an index model.safetensors, or all. Mistral's folders hold the weights twice."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted({path / str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                "The index of the model's files is damaged", found=f"{index}: {error!r}", remedy="Download it again."
            ) from error
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise ConfigError(
                "The folder lacks files that its index names" if missing else "The folder's index names no file",
                found=f"{path}: {', '.join(missing[:5]) or index.name}",
                remedy="Copy or download the folder again.",
            )
        return files
    whole = path / "model.safetensors"
    return [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
