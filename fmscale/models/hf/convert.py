"""A config.json to a `ModelConfig` and back, and the names of tensors.

The tensors correspond one to one, in the same layout: rotary positions turn the pairs (i, i + E/2) here too, so queries
and keys need no permutation.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.hf.family import BLOCK, Family
from fmscale.models.hf.gemma import GEMMA2, GEMMA3
from fmscale.models.hf.llama import LLAMA, MISTRAL
from fmscale.models.hf.qwen import QWEN2, QWEN3

FAMILIES = {family.kind: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)}
"""The model types of `transformers` that this decoder implements."""
CLASSIFIER = "SequenceClassification"
"""End of the names of classes with a score, or several, instead of a head."""
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
TEXT_OF_GEMMA3 = (
    "Save its text model alone, by transformers: whole = Gemma3ForConditionalGeneration.from_pretrained(FOLDER); "
    "text = Gemma3ForCausalLM(whole.config.text_config); text.model = whole.model.language_model; "
    "text.tie_weights(); text.save_pretrained(TO)"
)
"""Gemma3ForCausalLM.from_pretrained finds no tensor of such a folder, and draws random weights with a warning."""


def family_of(model: ModelConfig) -> Family:
    """The family that has the model's features, or comes nearest: the simplest that can describe it."""
    if model.norm_offset or model.post_norms:
        return GEMMA3 if model.qk_norm else GEMMA2
    if model.qk_norm or model.qkv_bias:
        return QWEN3 if model.qk_norm else QWEN2
    return LLAMA if model.window is None else MISTRAL


def hf_names(model: ModelConfig) -> dict[str, str]:
    """Every parameter of the model: fmscale's name -> Hugging Face's name. A reward model has no head there."""
    names = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    block = {**BLOCK, **family_of(model).names}
    for n in range(model.num_layers):
        names |= {f"layers.{n}.{name}": f"model.layers.{n}.{hf_name}" for name, hf_name in block.items()}
    if model.score:
        return names | {"score.weight": "score.weight"}
    return names if model.tied else names | {"output.weight": "lm_head.weight"}


def hf_config(model: ModelConfig, vocab_size: int, *, bos: int | None, eos: int | None) -> dict[str, Any]:
    """The config.json with which `transformers` builds the same model, version 4 or 5; a reward model sorts sequences
    with one label.

    Raises ConfigError for a model with features that no family there has together.
    """
    family = family_of(model)
    config = {
        "architectures": [f"{family.name}For{CLASSIFIER if model.score else 'CausalLM'}"],
        "model_type": family.kind,
        "vocab_size": vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_act": ACTIVATIONS[model.activation],
        "max_position_embeddings": model.max_seq_len,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied or model.score,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        **family.keys(model),
        **({"id2label": {"0": "score"}, "label2id": {"score": 0}} if model.score else {}),
    }
    back, wanted = (_comparable(each, vocab_size) for each in (from_hf_config(config), model))
    if back != wanted:
        names = [each.name for each in fields(ModelConfig)]
        lost = [f"model.{n} {getattr(wanted, n)}" for n in names if getattr(wanted, n) != getattr(back, n)]
        raise ConfigError(
            f"No model of transformers has these features together; {family.kind} comes nearest and lacks some",
            found=", ".join(lost),
            remedy="Export as safetensors or dcp instead of hf.",
        )
    return config


def from_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json of Hugging Face describes; `vocab_size` is set. A reward model has no head there: it
    is tied here, so that it has no weight for one.

    Raises ConfigError for another kind of model, or for a feature that this decoder lacks.
    """
    kind = config.get("model_type")
    if kind == "gemma3":
        raise ConfigError("The model has a vision part, which this decoder lacks", found=kind, remedy=TEXT_OF_GEMMA3)
    if kind not in FAMILIES:
        remedy = f"Kinds: {', '.join(FAMILIES)}."
        raise ConfigError("This decoder is not that kind of model", found=kind, remedy=remedy)
    family = FAMILIES[kind]
    config = {**family.defaults, **config}
    score = any(str(name).endswith(CLASSIFIER) for name in config.get("architectures") or ())
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if score and labels != 1:
        found, remedy = f"{labels} labels", "Take a reward model: num_labels 1."
        raise ConfigError("The model sorts texts, and this decoder gives one score", found=found, remedy=remedy)
    key = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    activation, own = config.get(key, "silu"), family.defaults.get(key, "silu")
    lacking = {
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "quantization_config": config.get("quantization_config"),
        "use_bidirectional_attention": config.get("use_bidirectional_attention"),
        # transformers ignores it in this family, and others may not
        "attn_logit_softcapping": family is GEMMA3 and config["attn_logit_softcapping"],
        key: activation != own and activation,
    }
    for name, value in lacking.items():
        if value:
            remedy = f"Take a plain {family.name}."
            raise ConfigError(f"The model has what this decoder lacks: {name}", found=value, remedy=remedy)
    try:
        return ModelConfig(
            num_layers=config["num_hidden_layers"],
            dim=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads"),
            head_dim=config.get("head_dim"),
            hidden_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_seq_len=config["max_position_embeddings"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=score or bool(config.get("tie_word_embeddings", False)),
            score=score,
            init_std=config.get("initializer_range", 0.02),
            **family.features(config),
        )
    except KeyError as error:
        raise ConfigError(
            "The config of the model lacks a number", found=error.args[0], remedy="Is it a config.json?"
        ) from error


def _comparable(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """The model with all that is derived written out, and without what does not change its function."""
    unstretched = model.window is not None and model.rope_scaling is None
    return replace(
        model,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_width,
        hidden_dim=model.ffn_width,
        local_rope_theta=model.local_rope_theta or (model.rope_theta if unstretched else None),
        query_scalar=model.query_scalar or model.head_width,
        tied=model.tied or model.score,
        vocab_size=vocab_size,
        dropout=0.0,
        attention_backend="auto",
    )
