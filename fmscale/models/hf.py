"""Hugging Face's Llama (and Mistral, which is a Llama with a window): names, config, weights, both ways.

The tensors correspond one to one, in the same layout: rotary positions turn the pairs (i, i + E/2) here
too, so queries and keys need no permutation.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fmscale.config.checks import InvalidField
from fmscale.config.model import ModelConfig, RopeScaling
from fmscale.errors import ConfigError

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
"""Parameter names in a block: fmscale's name -> Hugging Face's name."""

KINDS = ("llama", "mistral")
"""Hugging Face's model types that this decoder implements."""


def hf_names(model: ModelConfig) -> dict[str, str]:
    """Every parameter of the model: fmscale's name -> Hugging Face's name."""
    names = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for n in range(model.num_layers):
        names |= {f"layers.{n}.{name}": f"model.layers.{n}.{hf_name}" for name, hf_name in BLOCK.items()}
    return names if model.tied else names | {"output.weight": "lm_head.weight"}


def hf_config(model: ModelConfig, vocab_size: int, *, bos: int | None, eos: int | None) -> dict[str, Any]:
    """The config.json with which `transformers` builds the same model, version 4 or 5.

    Raises ConfigError for a model with a soft-cap, which Hugging Face's Llama lacks.
    """
    if model.softcap is not None:
        found, remedy = f"model.softcap {model.softcap}", "Export as safetensors or dcp instead of hf."
        raise ConfigError("Hugging Face's Llama has no soft-cap of attention scores", found=found, remedy=remedy)
    scaling = model.rope_scaling and {
        "rope_type": "llama3",
        "factor": model.rope_scaling.factor,
        "low_freq_factor": model.rope_scaling.low_freq_factor,
        "high_freq_factor": model.rope_scaling.high_freq_factor,
        "original_max_position_embeddings": model.rope_scaling.original_seq_len,
    }
    kind, name = ("llama", "Llama") if model.window is None else ("mistral", "Mistral")
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_seq_len,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": model.rope_theta, **(scaling or {"rope_type": "default"})},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        **({"mlp_bias": False} if model.window is None else {"sliding_window": model.window}),
    }


def from_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json of Hugging Face describes; `vocab_size` is set.

    Raises ConfigError for another kind of model, or for a feature that this decoder lacks.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ConfigError("This decoder is not that kind of model", found=kind, remedy=f"Kinds: {', '.join(KINDS)}.")
    lacking = {
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "hidden_act": config.get("hidden_act", "silu") != "silu" and config["hidden_act"],
    }
    for name, value in lacking.items():
        if value:
            raise ConfigError(
                f"The model has what this decoder lacks: {name}", found=value, remedy="Take a plain Llama."
            )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        return ModelConfig(
            num_layers=config["num_hidden_layers"],
            dim=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads"),
            head_dim=config.get("head_dim"),
            hidden_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_seq_len=config.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rope_scaling=_scaling_here(rope),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            window=config.get("sliding_window") if kind == "mistral" else None,
            init_std=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ConfigError(
            "The config of the model lacks a number", found=error.args[0], remedy="Is it a config.json?"
        ) from error


def _scaling_here(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(
            "The model stretches its rotary positions in a way that this decoder lacks",
            found=kind,
            remedy="It has that of Llama 3.1 (rope_type llama3) and none.",
        )
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_seq_len=rope["original_max_position_embeddings"],
    )


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """A model in Hugging Face's format in a local folder."""

    config: ModelConfig
    """Config of the model, with `vocab_size`."""
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
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        remedy = "The folder must have config.json and *.safetensors (no pickled .bin)."
        raise ConfigError("Not a model in Hugging Face's format", found=str(path), remedy=remedy)
    try:
        config = from_hf_config(json.loads((path / "config.json").read_bytes()))
    except (ValueError, InvalidField, RecursionError) as error:
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
