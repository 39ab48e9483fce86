"""Keys of `model:` whose values differ between a run and the checkpoint or folder that it takes weights from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fmscale.checkpoint.read.meta import section
from fmscale.config import Config, ModelConfig, as_tree, kind_of
from fmscale.config.kinds import Own
from fmscale.errors import ConfigError
from fmscale.text import clean_tree

SHAPES = (
    "num_layers", "dim", "num_heads", "num_kv_heads", "head_dim", "hidden_dim", "tied", "vocab_size",
    "qkv_bias", "qk_norm", "post_norms", "norm_offset", "activation", "embedding_scale",
)  # fmt: skip
"""Keys that decide the shapes of tensors, their division into heads, or the meaning of their numbers."""
FREE = ("max_seq_len", "dropout", "init_std", "attention_backend")
"""Keys that leave the function of given weights as it is; every other key changes it."""
ROPE = ("rope_theta", "rope_scaling", "local_rope_theta")
"""Keys that a fork may change, as training on longer rows does."""


def section_changes(section: object, source: object) -> dict[str, tuple[Any, Any]]:
    """{key: (value of `source`, value of `section`)} of the keys that differ and change the function. `source` is a
    section or its recorded tree; a key that only one of the two has is no difference.
    """
    ours, theirs = clean_tree(_tree(section)), clean_tree(_tree(source))  # a record has no credentials
    if ours["kind"] != theirs["kind"]:
        return {"kind": (theirs["kind"], ours["kind"])}
    common = [key for key in ours if key in theirs and key not in FREE]
    return {key: (theirs[key], ours[key]) for key in common if theirs[key] != ours[key]}


def refuse_model_changes(config: Config, meta: Mapping[str, Any], where: str, *, fork: bool) -> str:
    """Raise ConfigError if the model is another function of the weights than the checkpoint at `where` recorded.
    Returns a warning of the keys that a fork changes; empty without a change.
    """
    recorded = meta.get("config", {}).get("model")
    if not recorded:  # a user's own trainer may record none
        return ""
    if recorded.get("kind", ModelConfig.kind) == ModelConfig.kind:
        recorded = section(meta, "model", ModelConfig)
    changes = section_changes(config.model, recorded)
    changes.pop("vocab_size", None)  # null means the tokenizer's; the tensors' shapes say the rest
    own = not isinstance(config.model, ModelConfig) and "kind" not in changes
    allowed = fork and (own or changes.keys() <= set(ROPE))
    shown = "; ".join(f"{config.place(f'model.{key}')}: {ours}, recorded {was}" for key, (was, ours) in changes.items())
    if changes and not allowed:
        mine = ", ".join(f"model.{key}: {was}" for key, (was, _) in changes.items())
        raise ConfigError(
            f"checkpoint {where} is of a model that computes something else with the same weights",
            found=shown,
            remedy=f"Take {mine}, as recorded, or another train.run. A fork (train.resume: RUN@STEP with another "
            f"train.run) may change {'these keys' if own else ' and '.join(ROPE)}.",
        )
    return f"the fork of {where} changes its model: {shown}" if changes else ""


def refuse_adapter_changes(config: Config, meta: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError if the adapter computes something else with the same tensors than the checkpoint at `where`
    recorded, or if only the run or only the checkpoint has an adapter. Dropout may change.
    """
    recorded = meta.get("config", {}).get("adapter") or {}
    ours = as_tree(config.adapter) or {}
    keys = [key for key in ("kind", "rank", "alpha") if ours.get(key) != recorded.get(key)]
    if keys:
        was = ", ".join(f"adapter.{key}: {recorded[key]}" for key in keys) if recorded else "adapter: null"
        raise ConfigError(
            f"checkpoint {where} is of {'another' if recorded and ours else 'an' if recorded else 'no'} adapter",
            found="; ".join(
                f"{config.place(f'adapter.{key}')}: {ours.get(key)}, recorded {recorded.get(key)}" for key in keys
            ),
            remedy=f"Take {was}, as recorded, or another train.run.",
        )


def _tree(section: object) -> dict[str, Any]:
    """A section's values with its kind, and the derived widths of a decoder in place of null."""
    if isinstance(section, ModelConfig):
        heads, width, hidden = section.kv_heads, section.head_width, section.ffn_width
        section = replace(section, num_kv_heads=heads, head_dim=width, hidden_dim=hidden)
    tree: dict[str, Any] = dict(section) if isinstance(section, Mapping) else as_tree(section, Own)
    return {"kind": kind_of(section), **tree}
