"""A GGUF file (ggml-org/llama.cpp): weights dequantised to fp32, and the config that its metadata describes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmscale.checkpoint.format.layout import Tensor
from fmscale.errors import ConfigError, FmscaleError
from fmscale.exchange.gguf_tokenizer import specials_of, tokenizer_of
from fmscale.exchange.source import ModelSource, order_ends
from fmscale.models.hf import from_hf_config, hf_names
from fmscale.store.datasets.templates import ChatTemplate

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Architectures that are read, with their classes in transformers. Mistral's files say llama. Gemma's files have
SentencePiece vocabularies, which are refused."""

TYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "Q8_0": "float32",
    "Q4_0": "float32",
    "Q4_1": "float32",
}
"""Types of tensors that are read, and the types that they become."""

KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}
"""Keys of config.json -> keys of the metadata behind `ARCHITECTURE.`."""


def open_gguf(path: Path) -> ModelSource:
    """Open a GGUF file; reads the metadata, and no tensor. Raises ConfigError for a damaged file, and for an
    architecture, a type of tensors or a tokenizer that is not read.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        remedy = "pip install 'fmscale[gguf]', or `pip install gguf`."
        raise ConfigError(
            "GGUF is read by the library gguf, which is missing", found=str(path), remedy=remedy
        ) from error
    try:
        return _opened(path, GGUFReader(path))
    except FmscaleError:
        raise
    except Exception as error:  # the libraries gguf and tokenizers name no errors
        found, remedy = f"{path}: {type(error).__name__}: {error}"[:300], "Download it again."
        raise ConfigError("The GGUF file is damaged, or of another version", found=found, remedy=remedy) from error


def _opened(path: Path, reader: Any) -> ModelSource:
    fields = {name: field.contents() for name, field in reader.fields.items()}
    infos = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in infos.values():
        if tensor.tensor_type.name not in TYPES:
            raise _refused("a tensor of a type", f"{tensor.name}: {tensor.tensor_type.name}", TYPES)
    config = _config(fields, infos, path)
    model = from_hf_config(config)
    names = {_gguf_name(hf_name, config): name for name, hf_name in hf_names(model).items()}
    ours = {names.get(name, name): tensor for name, tensor in infos.items()}
    heads = {"attn_q": model.num_heads, "attn_k": model.kv_heads} if config["model_type"] == "llama" else {}

    def read(name: str) -> torch.Tensor:
        tensor = ours[name]
        rows = _unpermuted(_values(tensor), heads.get(tensor.name.split(".")[-2], 0))
        dtype = getattr(torch, TYPES[tensor.tensor_type.name])
        return torch.from_numpy(np.require(rows, requirements=["C", "W"])).view(dtype)

    bos = fields.get("tokenizer.ggml.bos_token_id") if fields.get("tokenizer.ggml.add_bos_token") else None
    tokenizer, specials = tokenizer_of(fields, bos, str(path)), specials_of(fields)
    text = fields.get("tokenizer.chat_template")
    template = ChatTemplate(text=text, special_tokens=specials) if text else None
    eos = [fields[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in fields]
    ends = order_ends(eos, template, {i: fields["tokenizer.ggml.tokens"][i] for i in eos})
    tokens = {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    settings = {**tokenizer.hf_config(bos, None), **specials, "split_special_tokens": False}
    files = {"config": {**config, **tokens}, "generation_config": tokens, "tokenizer_config": settings}
    written = {f"{name}.json": (json.dumps(value, indent=2) + "\n").encode() for name, value in files.items()}
    return ModelSource(
        name=path.name,
        config=model,
        tensors=[
            Tensor(name, "weight", TYPES[tensor.tensor_type.name], tuple(int(n) for n in reversed(tensor.shape)))
            for name, tensor in ours.items()
        ],
        read=read,
        tokenizer=tokenizer.to_json(),
        template=template,
        bos=bos,
        ends=ends,
        files=written | ({"chat_template.jinja": template.text.encode()} if template else {}),
    )


def _gguf_name(name: str, config: Mapping[str, Any]) -> str:
    """GGUF's name of a tensor: `model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"])
    return str(names.get_name(name, try_suffixes=(".weight", ".bias")))


def _config(fields: Mapping[str, Any], infos: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """config.json of the model in transformers. Raises ConfigError for what this reader does not know."""
    kind, embedding = fields.get("general.architecture"), infos.get("token_embd.weight")
    if kind not in ARCHITECTURES or embedding is None:
        raise _refused("a model of an architecture", f"{path}: {kind}", ARCHITECTURES)
    stretched = "rope_freqs" if "rope_freqs.weight" in infos else fields.get(f"{kind}.rope.scaling.type", "none")
    if stretched != "none":
        raise _refused("stretching of positions", f"{path}: {stretched}", ["none"])
    values = {name: fields.get(f"{kind}.{key}") for name, key in KEYS.items()}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        # The shortest decimal of the same fp32 number: 1e-5 instead of 9.999999747378752e-06.
        **{name: float(str(np.float32(one))) if isinstance(one, float) else one for name, one in values.items() if one},
        "vocab_size": int(embedding.shape[-1]),
        "tie_word_embeddings": "output.weight" not in infos,
        "hidden_act": "silu",
        "dtype": TYPES[embedding.tensor_type.name],
    }


def _refused(what: str, found: str, known: Iterable[str]) -> ConfigError:
    remedy = f"Known: {', '.join(known)}. Or take the model's folder in Hugging Face's format."
    return ConfigError(f"The GGUF file has {what} that is not read", found=found, remedy=remedy)


def _values(tensor: Any) -> np.ndarray:
    """The numbers of a tensor, with bfloat16 as its bits."""
    from gguf import GGMLQuantizationType, dequantize

    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return np.asarray(tensor.data.view(np.int16))
    if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return np.asarray(tensor.data)
    return np.asarray(dequantize(tensor.data, tensor.tensor_type))


def _unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as Hugging Face has them: llama.cpp turns neighbouring rows, (2i, 2i + 1)."""
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
