"""Imports of GGUF files: types, names and rows of the tensors, the tokenizer, and what is refused."""

import contextlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer as Library

from fmscale.errors import ConfigError
from fmscale.exchange.import_run import open_source
from fmscale.exchange.source import ModelSource
from fmscale.models.hf import hf_names
from tests.exchange.foreign import CHATML, MODEL, TEXTS, library, write_gguf

TYPES = {
    "attn_q": Type.Q4_0,
    "attn_k": Type.Q4_1,
    "attn_v": Type.F16,
    "ffn_up": Type.BF16,
    "ffn_down": Type.Q8_0,
    "ffn_gate": Type.Q8_0,
}
CLOSE = {Type.Q4_0: 0.15, Type.Q4_1: 0.08, Type.Q8_0: 0.01, Type.F16: 1e-3, Type.BF16: 4e-3}
"""Largest error of a number, over the largest number of the tensor."""


def test_the_tensors_are_those_of_hugging_face_and_types_as_told(tmp_path: Path) -> None:
    theirs = write_gguf(tmp_path / "model.gguf", TYPES)
    source = open_source(str(tmp_path / "model.gguf"))
    assert source.config.num_kv_heads == MODEL.num_kv_heads
    assert (source.config.norm_eps, source.config.tied) == (1e-5, False)
    names = hf_names(source.config)
    assert {names[tensor.name] for tensor in source.tensors} == theirs.keys()
    assert {tensor.dtype for tensor in source.tensors} == {"float32", "float16", "bfloat16"}
    for tensor in source.tensors:
        ours, there = source.read(tensor.name), theirs[names[tensor.name]]
        assert (str(ours.dtype), tuple(ours.shape)) == (f"torch.{tensor.dtype}", tensor.shape)
        parts = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
        kind = TYPES.get(parts.get(tensor.name.split(".")[-2], ""), Type.F32)
        assert (ours.float() - there).abs().max() <= CLOSE.get(kind, 0.0) * there.abs().max(), (tensor.name, kind)


def ids(source: ModelSource, text: str) -> list[int]:
    made: Any = Library.from_buffer(source.tokenizer)
    found: list[int] = made.encode(text).ids
    return found


def test_the_tokenizer_is_the_same_with_its_template_and_ends(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {})
    write_gguf(tmp_path / "b.gguf", {}, add_bos=True)
    source, begun = (open_source(str(tmp_path / name)) for name in ("a.gguf", "b.gguf"))
    start, stop = library().token_to_id("<|im_start|>"), library().token_to_id("<|im_end|>")
    for text in [*TEXTS, "<|im_start|>user\n12<|im_end|>", "", " \n\n x", "東京 🙂"]:
        assert ids(source, text) == library().encode(text).ids
        assert ids(begun, text) == [start, *library().encode(text).ids]
    assert (source.bos, begun.bos, source.ends) == (None, start, [stop])
    assert source.template is not None
    assert source.template.text == source.files["chat_template.jinja"].decode() == CHATML
    assert source.template.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("types", "metadata", "message"),
    [
        ({"ffn_down": Type.Q5_0}, {}, "a tensor of a type that is not read.*blk.0.ffn_down.weight: Q5_0.*Q4_1"),
        ({}, {"architecture": "gemma2"}, "an architecture that is not read.*gemma2.*llama, qwen2, qwen3"),
        ({}, {"tokenizer.ggml.model": "llama"}, "SentencePiece vocabulary.*it has tokenizer.json"),
        ({}, {"tokenizer.ggml.pre": "tekken"}, "words of tekken.*it has tokenizer.json"),
        ({}, {"llama.rope.scaling.type": "yarn"}, "stretching of positions that is not read.*yarn"),
        ({}, {"llama.embedding_length": None}, "lacks a number.*hidden_size"),
        ({}, {"llama.block_count": 1}, "another model.*blk|another model.*layers.1"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    types: dict[str, Type], metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", types, **metadata)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        open_source(str(tmp_path / "model.gguf"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_gguf(path := tmp_path / "model.gguf", {})
    whole = path.read_bytes()
    for size in (0, 3, 100, 5000, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="damaged, or of another version"):
            open_source(str(path))
    chance = random.Random(5)
    for place in [0, *(chance.randrange(len(whole) // 2) for _ in range(40))]:
        path.write_bytes(whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :])
        with contextlib.suppress(ConfigError):  # or the same model: a changed letter of a token is no damage
            open_source(str(path))


def test_without_the_library_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"missing.*pip install 'fmscale\[gguf\]'"):
        open_source(str(tmp_path / "model.gguf"))


def test_a_grown_vocabulary_is_refused(tmp_path: Path) -> None:
    more = [library().id_to_token(i) for i in range(library().get_vocab_size())] + ["<|new|>"]
    write_gguf(tmp_path / "model.gguf", {}, **{"ggml.tokens": more, "ggml.token_type": [1] * len(more)})
    with pytest.raises(ConfigError, match="vocabulary has grown"):
        open_source(str(tmp_path / "model.gguf"))
    assert torch.get_default_dtype() == torch.float32
