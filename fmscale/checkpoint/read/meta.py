"""Values that a run saves with its tensors, read back from a checkpoint's meta."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fmscale.config import ModelConfig, as_yaml
from fmscale.config.reader.load import load_section
from fmscale.config.reader.tree import YamlTable, parse
from fmscale.errors import ConfigError

Section = TypeVar("Section")

INHERITED = ("template", "bos", "eos", "ends", "files", "types")
"""Facts of an imported model that hold for every run begun with its weights: digest of the chat template; BOS, EOS and
all tokens that end an answer; digests of the files beside the weights; types of the tensors.
"""


def section(meta: Mapping[str, Any], name: str, kind: type[Section]) -> Section:
    """Section `name` of the config that the run was saved with. Raises ConfigError for a missing or wrong section."""
    tree = meta.get("config", {}).get(name)
    table = parse(as_yaml(tree), f"{name} section of the checkpoint")
    if not isinstance(table, YamlTable):
        raise ConfigError(f"The checkpoint has no {name} section", found=tree, remedy="Was it made by `fmscale train`?")
    return load_section(kind, table)


def decoder_section(meta: Mapping[str, Any], work: str) -> ModelConfig:
    """Section `model`, for `work` that only our decoder can do. Raises ConfigError for any other model, whose class is
    not imported: reading a checkpoint executes no code of its choice.
    """
    kind = (meta.get("config", {}).get("model") or {}).get("kind", ModelConfig.kind)
    if kind != ModelConfig.kind:
        raise ConfigError(
            f"{work} needs a model of kind {ModelConfig.kind}",
            found=f"model.kind: {kind}",
            remedy="Take the tensors: `fmscale checkpoint export --format safetensors`.",
        )
    return section(meta, "model", ModelConfig)


def inherited(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the imported model that a run began with; empty for a run that began with none."""
    return {name: meta[name] for name in INHERITED if name in meta}


def next_sample(meta: Mapping[str, Any]) -> int:
    """First sample of the run's next step: the run has trained on all samples before it."""
    return int(meta["loader"]["k"])
