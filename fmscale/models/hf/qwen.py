"""Qwen 2 and 2.5, with biases of queries, keys and values, and Qwen 3, with norms of heads in their place."""

from fmscale.config.model import ModelConfig
from fmscale.models.hf.family import HEAD_NORMS, Family, Keys, layer_types, rotary, rotary_keys, windows


def _features(config: Keys) -> Keys:
    window = config["sliding_window"] if config["use_sliding_window"] else None
    return {**rotary(config), **windows(config, window, lambda n: bool(n < config["max_window_layers"]))}


def _keys(model: ModelConfig) -> Keys:
    return {
        **rotary_keys(model),
        "use_sliding_window": model.window is not None,
        "sliding_window": model.window,
        # the last layers have windows: transformers 4 knows no other order, 5 reads layer_types
        "max_window_layers": len(model.global_layers) if model.window is not None else model.num_layers,
        "layer_types": layer_types(model),
    }


_DEFAULTS = {
    "max_position_embeddings": 32_768, "num_key_value_heads": 32,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip

QWEN2 = Family(
    kind="qwen2",
    name="Qwen2",
    defaults=_DEFAULTS,
    features=lambda config: {**_features(config), "qkv_bias": True},
    keys=_keys,
    names={f"attention.w{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
)
QWEN3 = Family(
    kind="qwen3",
    name="Qwen3",
    defaults={**_DEFAULTS, "head_dim": 128},
    features=lambda config: {**_features(config), "qk_norm": True},
    keys=lambda model: {**_keys(model), "attention_bias": False},
    names=HEAD_NORMS,
)
