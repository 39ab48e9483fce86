"""Gemma 2 and the text model of Gemma 3."""

from typing import Any

from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.hf.family import (
    HEAD_NORMS,
    Family,
    Keys,
    layer_types,
    rotary,
    rotary_keys,
    stretched,
    stretching,
    windows,
)

_NAMES = {
    "attention_post_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_post_norm.weight": "post_feedforward_layernorm.weight",
}
_DEFAULTS = {
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip


def _both(config: Keys) -> dict[str, Any]:
    return {
        "norm_offset": 1.0,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": float(config["hidden_size"] ** 0.5),
        "query_scalar": config["query_pre_attn_scalar"],
        "logit_softcap": config["final_logit_softcapping"],
        "softcap": config["attn_logit_softcapping"],
    }


def _gemma2(config: Keys) -> Keys:
    return {**_both(config), **rotary(config), **windows(config, config["sliding_window"], lambda n: bool(n % 2))}


def _gemma3(config: Keys) -> Keys:
    """Local layers turn by a base of their own and are not stretched."""
    every = config.get("sliding_window_pattern") or 6
    seen = windows(config, config["sliding_window"], lambda n: bool((n + 1) % every == 0))
    nested = config.get("rope_parameters") or {}
    whole, local = (nested.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    if stretching(local) is not None:
        remedy = "Only layers that see the whole document may be stretched."
        raise ConfigError("Local layers are stretched, which this decoder lacks", found=local, remedy=remedy)
    theta = whole.get("rope_theta") or config.get("rope_theta") or 1_000_000.0
    local_theta = local.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0
    return {
        **_both(config),
        **seen,
        "qk_norm": True,
        "rope_theta": float(theta),
        "rope_scaling": stretching({**whole, **(config.get("rope_scaling") or {})}),
        "local_rope_theta": float(local_theta) if seen else None,
    }


def _keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": model.query_scalar or model.head_width,
        "sliding_window": model.window,
        "layer_types": layer_types(model),
        "final_logit_softcapping": model.logit_softcap,
        "attn_logit_softcapping": model.softcap,
        "attention_bias": False,
    }


def _gemma3_keys(model: ModelConfig) -> Keys:
    theta, local = model.rope_theta, model.local_rope_theta or model.rope_theta
    scaling = stretched(model.rope_scaling)
    return {
        **_keys(model),
        "rope_theta": theta,
        "rope_local_base_freq": local,
        "rope_scaling": scaling or None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
    }


GEMMA2 = Family(
    kind="gemma2",
    name="Gemma2",
    defaults=_DEFAULTS,
    features=_gemma2,
    keys=lambda model: {**_keys(model), **rotary_keys(model)},
    names=_NAMES,
)
GEMMA3 = Family(
    kind="gemma3_text",
    name="Gemma3",
    defaults={
        **_DEFAULTS, "vocab_size": 262_208, "max_position_embeddings": 131_072,
        "final_logit_softcapping": None, "attn_logit_softcapping": None,
    },
    features=_gemma3,
    keys=_gemma3_keys,
    names={**_NAMES, **HEAD_NORMS},
)  # fmt: skip
