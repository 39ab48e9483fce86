"""Llama, and Mistral, which is a Llama whose layers may all have a window."""

from fmscale.models.hf.family import Family, rotary, rotary_keys

LLAMA = Family(
    kind="llama",
    name="Llama",
    defaults={"max_position_embeddings": 2048},
    features=rotary,
    keys=lambda model: {**rotary_keys(model), "attention_bias": False, "mlp_bias": False},
)
MISTRAL = Family(
    kind="mistral",
    name="Mistral",
    defaults={"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    features=lambda config: {**rotary(config), "window": config["sliding_window"]},
    keys=lambda model: {**rotary_keys(model), "sliding_window": model.window},
)
