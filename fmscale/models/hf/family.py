"""The part of a family: its keys and tensors beside those that all have; rotary positions in old and new configs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmscale.config.model import ModelConfig, RopeScaling
from fmscale.errors import ConfigError

Keys = Mapping[str, Any]

BLOCK = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
"""Parameter names in a block of every family: fmscale's name -> Hugging Face's name."""
HEAD_NORMS = {"attention.q_norm": "self_attn.q_norm.weight", "attention.k_norm": "self_attn.k_norm.weight"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type of `transformers`."""

    kind: str
    """`model_type`."""
    name: str
    """Class of the model, without ForCausalLM."""
    defaults: Keys
    """Keys that `transformers` adds to a config without them."""
    features: Callable[[Keys], Keys]
    """Fields of `ModelConfig` that only some families have, from a config.json with the defaults."""
    keys: Callable[[ModelConfig], Keys]
    """Keys of config.json that only some families have."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors in a block that differ from `BLOCK`."""


def windows(config: Keys, window: int | None, is_global: Callable[[int], bool]) -> dict[str, Any]:
    """Window and global layers: by the `layer_types` of transformers 5, or by the family's rule in a config without."""
    kinds = config.get("layer_types")
    layers = range(config["num_hidden_layers"])
    if kinds is not None:
        other = set(kinds) - {"full_attention", "sliding_attention"}
        if other or len(kinds) != len(layers):
            remedy = "They are full_attention or sliding_attention, one for each layer."
            raise ConfigError("The layers are of kinds that this decoder lacks", found=kinds, remedy=remedy)
    everywhere = tuple(n for n in layers if (kinds[n] == "full_attention" if kinds else is_global(n)))
    if window is None or len(everywhere) == len(layers):
        return {}
    return {"window": window, "global_layers": everywhere}


def layer_types(model: ModelConfig) -> list[str]:
    """The kind of attention of each layer, as transformers 5 writes it."""
    local = [model.layer_window(n) is not None for n in range(model.num_layers)]
    return ["sliding_attention" if each else "full_attention" for each in local]


def stretching(rope: Keys) -> RopeScaling | None:
    """The stretching that `rope_scaling` or `rope_parameters` describes. Raises ConfigError for one that this decoder
    lacks.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    turned = rope.get("partial_rotary_factor")
    if turned not in (None, 1):
        raise ConfigError(
            "The model turns only a part of each head, which this decoder cannot",
            found=f"partial_rotary_factor {turned}",
            remedy="Take a model whose rotary positions turn whole heads.",
        )
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(factor=float(rope["factor"]), original_seq_len=1)
    if kind == "llama3":
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_seq_len=rope["original_max_position_embeddings"],
        )
    raise ConfigError(
        "The model stretches its rotary positions in a way that this decoder lacks",
        found=kind,
        remedy="It has rope_type llama3 (Llama 3.1), linear, and none.",
    )


def stretched(scaling: RopeScaling | None) -> dict[str, Any]:
    """The stretching as `rope_scaling` of transformers 4."""
    if scaling is None:
        return {}
    if scaling.original_seq_len == 1:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_seq_len,
    }


def rotary(config: Keys) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model whose layers all turn alike."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        remedy = "Only Gemma 3's layers differ in that."
        raise ConfigError("Layers turn by bases of their own, which this decoder lacks", found=rope, remedy=remedy)
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    partial = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    return {"rope_theta": float(theta), "rope_scaling": stretching({**partial, **rope})}


def rotary_keys(model: ModelConfig) -> dict[str, Any]:
    """The keys of `rotary`, for transformers 4 and 5."""
    scaling = stretched(model.rope_scaling)
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling or None,
        "rope_parameters": {"rope_theta": model.rope_theta, **(scaling or {"rope_type": "default"})},
    }
