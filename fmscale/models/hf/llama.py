"""Llama, and Mistral, which is a Llama whose layers may all have a window."""

from fmscale.config.model import ModelConfig
from fmscale.models.hf.family import Family, Keys, rotary, rotary_keys


def _mistral(config: Keys) -> Keys:
    return {**rotary(config), "window": config["sliding_window"]}


def _mistral_keys(model: ModelConfig) -> Keys:
    return {**rotary_keys(model), "sliding_window": model.window}


def _llama_keys(model: ModelConfig) -> Keys:
    return {**rotary_keys(model), "attention_bias": False, "mlp_bias": False}


LLAMA = Family(
    kind="llama", name="Llama", defaults={"max_position_embeddings": 2048}, features=rotary, keys=_llama_keys
)
MISTRAL = Family(
    kind="mistral",
    name="Mistral",
    defaults={"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    features=_mistral,
    keys=_mistral_keys,
)
