"""Small models as others publish them: a folder in Hugging Face's format, and a GGUF file."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from fmscale.config import ModelConfig
from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.models import Decoder
from fmscale.models.hf import hf_config, hf_names

TEXTS = ["the quick brown fox jumps over 12 lazy dogs, naïve", "don't stop: def f(x):\n    return 3 * x\n"] * 3
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "12 dogs"}]
MODEL = ModelConfig(num_layers=2, dim=64, num_heads=4, num_kv_heads=2, max_seq_len=96, init_std=0.2)


@lru_cache
def library() -> Any:
    made: Any = Library.from_buffer(train_bpe(TEXTS, 310).to_json())
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return made


def weights(model: ModelConfig = MODEL, rows: int | None = None) -> dict[str, torch.Tensor]:
    """Random weights by Hugging Face's names, matrices in bfloat16 and vectors in float32."""
    decoder = Decoder(model, rows or library().get_vocab_size())
    decoder.init_weights(torch.Generator().manual_seed(3))
    names = hf_names(model)
    return {
        names[name]: parameter.detach().to(torch.bfloat16 if parameter.dim() > 1 else torch.float32)
        for name, parameter in decoder.named_parameters()
    }


def write_folder(path: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    """A chat model as `save_pretrained` writes it, its weights in two files; `settings` of tokenizer_config.json."""
    tensors = weights() if tensors is None else tensors
    path.mkdir(parents=True)
    names, at = sorted(tensors), len(tensors) // 2
    files = {"model-00001-of-00002.safetensors": names[:at], "model-00002-of-00002.safetensors": names[at:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    end, start, stop = (library().token_to_id(name) for name in SPECIALS)
    config = hf_config(MODEL, library().get_vocab_size(), bos=start, eos=end) | {"dtype": "bfloat16", "comment": "ours"}
    made: Any = transformers.PreTrainedTokenizerFast
    tokenizer = made(
        tokenizer_object=library(), eos_token="<|endoftext|>", bos_token="<|im_start|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(path)
    said = {
        "model.safetensors.index.json": index,
        "config.json": config,
        "generation_config.json": {"eos_token_id": [end, stop], "temperature": 0.7, "do_sample": True},
        "tokenizer_config.json": json.loads((path / "tokenizer_config.json").read_text()) | settings,
    }
    for name, value in said.items():
        (path / name).write_text(json.dumps(value, indent=1))
    return path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write_gguf(path: Path, types: dict[str, Type], **metadata: Any) -> dict[str, torch.Tensor]:
    """A llama in GGUF as llama.cpp's converter writes it; `types` by a part of the tensor's name, F32 for all others.
    Returns its weights in fp32 by Hugging Face's names. `metadata` replaces or, as None, leaves out keys by their ends.
    """
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    kinds = [3 if library().id_to_token(i) in SPECIALS else 1 for i in range(library().get_vocab_size())]
    merges = [" ".join(pair) for pair in json.loads(library().to_str())["model"]["merges"]]
    values: dict[str, Any] = {
        "llama.block_count": MODEL.num_layers,
        "llama.context_length": MODEL.max_seq_len,
        "llama.embedding_length": MODEL.dim,
        "llama.feed_forward_length": MODEL.ffn_width,
        "llama.attention.head_count": MODEL.num_heads,
        "llama.attention.head_count_kv": MODEL.kv_heads,
        "llama.rope.freq_base": MODEL.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": MODEL.norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [library().id_to_token(i) for i in range(len(kinds))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": library().token_to_id("<|im_end|>"),
        "tokenizer.ggml.bos_token_id": library().token_to_id("<|im_start|>"),
        "tokenizer.chat_template": CHATML,
    }
    for end, value in metadata.items():
        values[next((key for key in values if key.endswith(end)), end)] = value
    put: dict[Any, Any] = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in (values | {"tokenizer.ggml.add_bos_token": bool(metadata.get("add_bos"))}).items():
        if value is not None and key != "add_bos":
            (writer.add_bool if value is True or value is False else put[type(value)])(key, value)
    tensors = {name: tensor.float() for name, tensor in weights().items()}
    for name, tensor in tensors.items():
        ours = _gguf_name(name)
        rows = tensor.numpy()
        if heads := {"attn_q": MODEL.num_heads, "attn_k": MODEL.kv_heads}.get(ours.split(".")[-2]):
            rows = rows.reshape(heads, 2, -1, MODEL.dim).swapaxes(1, 2).reshape(rows.shape)
        kind = next((kind for part, kind in types.items() if part in ours), Type.F32)
        data = rows if kind == Type.F32 else gguf.quantize(np.ascontiguousarray(rows), kind)
        writer.add_tensor(ours, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _gguf_name(name: str) -> str:
    names = gguf.TensorNameMap(gguf.MODEL_ARCH.LLAMA, MODEL.num_layers)
    found = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None, name
    return found
