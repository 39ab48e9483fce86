"""Models of every family, made by transformers, are the same function here, and go back as the same family."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from fmscale.config import RopeScaling, num_parameters
from fmscale.infer import Sampling, generate
from fmscale.models import Decoder, build, load_weights
from fmscale.models.hf import from_hf_config, hf_config, hf_names, open_hf_folder
from tests.models.models import VOCAB, packed, tokens

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 12,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 64, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 8.0}
GEMMA = {"query_pre_attn_scalar": 20, "sliding_window": 5}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama 2": ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
                {"rope_scaling": RopeScaling(factor=2.0, original_seq_len=1)}),
    "mistral": ({"model_type": "mistral", "sliding_window": 5, "rope_theta": 1e6}, {"window": 5, "rope_theta": 1e6}),
    "mistral, no window": ({"model_type": "mistral", "sliding_window": None}, {"window": None}),
    "qwen2": ({"model_type": "qwen2", "sliding_window": 5}, {"qkv_bias": True, "window": None}),
    "qwen2, windows": ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
                       {"window": 5, "global_layers": (0,)}),
    "qwen3": ({"model_type": "qwen3", "rope_theta": 1e6, "tie_word_embeddings": True}, {"qk_norm": True, "tied": True}),
    "gemma2": ({"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
               {"window": 5, "global_layers": (1,), "softcap": 2.0, "logit_softcap": 3.0, "query_scalar": 20}),
    "gemma3": ({"model_type": "gemma3_text", **GEMMA, "sliding_window_pattern": 3, "rope_scaling": LINEAR,
                "rope_theta": 1000.0, "rope_local_base_freq": 50.0},
               {"window": 5, "global_layers": (2,), "local_rope_theta": 50.0, "rope_theta": 1000.0, "qk_norm": True,
                "rope_scaling": RopeScaling(factor=8.0, original_seq_len=1)}),
}  # fmt: skip
AUTO: Any = transformers.AutoModelForCausalLM


def made(family: str) -> Any:
    """A random model of transformers; norms and biases are random too, so that none can be left out unseen."""
    config = transformers.AutoConfig.for_model(**copy.deepcopy({**SIZES, **FAMILIES[family][0]}))
    theirs = AUTO.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return theirs


def opened(folder: Path) -> Decoder:
    found = open_hf_folder(folder)
    model = build(found.config, vocab_size=VOCAB)
    load_weights(model, found.read, found.shapes)
    return model.eval()


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-4 of the largest number."""
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_family_is_the_same_function_and_goes_back(family: str, tmp_path: Path) -> None:
    theirs = made(family)
    theirs.save_pretrained(tmp_path / "theirs")
    model = opened(tmp_path / "theirs")
    wanted = FAMILIES[family][1]
    assert {name: getattr(model.config, name) for name in wanted} == wanted
    assert num_parameters(model.config, VOCAB) == sum(p.numel() for p in model.parameters())

    documents = [tokens(length, seed=length) for length in (17, 3, 9)]  # windows are shorter than the longest
    alone = [theirs(document[None]).logits[0] for document in documents]
    assert_same(model.head(model(documents[0][None])), alone[0][None])
    hidden = model(**packed(*documents))
    assert_same(model.head(hidden)[0], torch.cat(alone))
    labels = torch.cat([torch.cat((document[1:], torch.tensor([-100]))) for document in documents])[None]
    total, count, _ = model.head(hidden, labels=labels)
    losses = [theirs(each[None], labels=each[None]).loss * (len(each) - 1) for each in documents]
    torch.testing.assert_close((total, count), (sum(losses), torch.tensor(26.0)), rtol=1e-5, atol=0)

    saved = json.loads((tmp_path / "theirs" / "config.json").read_bytes())
    config = hf_config(model.config, VOCAB, bos=1, eos=2)
    kind = "llama" if family == "mistral, no window" else saved["model_type"]  # the same function and names
    assert (config["model_type"], config["bos_token_id"]) == (kind, 1)
    assert from_hf_config(json.loads(json.dumps(config))) == from_hf_config(saved) == model.config
    folder = tmp_path / "back"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = hf_names(model.config)
    save_file({names[n]: p for n, p in model.named_parameters()}, folder / "model.safetensors", {"format": "pt"})
    back, info = AUTO.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(back(documents[0][None]).logits[0], alone[0])


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_generation_goes_on_over_windows_and_soft_caps_as_in_transformers(family: str, tmp_path: Path) -> None:
    theirs = made(family)
    theirs.save_pretrained(tmp_path)
    prompts = [tokens(length, seed=length).tolist() for length in (3, 11)]
    said = generate(opened(tmp_path), prompts, max_tokens=12, sampling=Sampling(temperature=0.0))
    for prompt, ours in zip(prompts, said, strict=True):
        row = torch.tensor([prompt])
        whole = theirs.generate(row, do_sample=False, max_new_tokens=12, min_new_tokens=12, eos_token_id=None)
        assert ours.tokens == whole[0, len(prompt) :].tolist()
