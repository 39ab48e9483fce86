"""Models of every family, made by transformers, are the same function here, and go back as the same family."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from fmscale.config import RopeScaling, num_parameters
from fmscale.errors import ConfigError
from fmscale.infer import Sampling, generate
from fmscale.models import Decoder, build, load_weights
from fmscale.models.hf import from_hf_config, hf_config, hf_names, open_hf_folder
from tests.models.models import VOCAB, packed, small, tokens

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


def test_tokens_are_drawn_from_bounded_logits() -> None:
    """Unbounded logits of this size leave no choice, and the likeliest token is the same with a bound."""
    said = {}
    for bound in (None, 0.1):
        draws = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2)]
        model = small(init_std=100.0, logit_softcap=bound)
        said[bound] = [generate(model, [[3]], max_tokens=20, sampling=draw)[0].tokens for draw in draws]
    assert said[None][0] == said[None][1]
    assert said[0.1][0] != said[0.1][1]


def test_the_text_of_a_model_with_vision_is_read_as_the_refusal_says(tmp_path: Path) -> None:
    text = {**SIZES, **FAMILIES["gemma3"][0]}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 8, "patch_size": 8}  # fmt: skip
    theirs: Any = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision)
    )
    theirs.eval().save_pretrained(tmp_path / "whole")
    with pytest.raises(ConfigError, match="vision part") as refused:
        open_hf_folder(tmp_path / "whole")
    _, _, code = str(refused.value.remedy).partition(": ")
    names = {name: getattr(transformers, name) for name in re.findall(r"Gemma3For\w+", code)}
    exec(code, {**names, "FOLDER": tmp_path / "whole", "TO": tmp_path / "text"})
    row = tokens(1, 17)
    with torch.no_grad():
        model = opened(tmp_path / "text")
        assert_same(model.head(model(row)), theirs(row).logits)


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-2-7b": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rope_scaling": None,
         "tie_word_embeddings": False, "hidden_act": "silu"}, 6_738_415_616),
    "Mistral-7B-v0.1": (
        {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
         "tie_word_embeddings": False, "hidden_act": "silu"}, 7_241_732_096),
    "Qwen2.5-0.5B": (
        {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "sliding_window": 32768,
         "max_window_layers": 24, "use_sliding_window": False, "tie_word_embeddings": True, "hidden_act": "silu"},
        494_032_768),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
         "sliding_window": None, "max_window_layers": 28, "use_sliding_window": False, "tie_word_embeddings": True,
         "attention_bias": False, "hidden_act": "silu"}, 596_049_920),
    "gemma-2-2b": (
        {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
         "sliding_window": 4096, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256},
        2_614_341_888),
    "gemma-3-1b": (
        {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
         "sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000,
         "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None,
         "query_pre_attn_scalar": 256}, 999_885_952),
}  # fmt: skip
"""Keys of published config.json files, as transformers 4 wrote them, and parameters by the model cards."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_size_that_is_published(name: str) -> None:
    keys, size = PUBLISHED[name]
    config = from_hf_config(keys)
    assert num_parameters(config, keys["vocab_size"]) == size
    windows = [config.layer_window(n) for n in range(config.num_layers)]
    local = {"Mistral-7B-v0.1": 32, "gemma-2-2b": 13, "gemma-3-1b": 22}.get(name, 0)
    assert sum(window is not None for window in windows) == local
    assert name != "gemma-3-1b" or (windows[:7], config.global_layers) == ([512] * 5 + [None, 512], (5, 11, 17, 23))


def written(config: dict[str, Any]) -> dict[str, Any]:
    return hf_config(from_hf_config(config), VOCAB, bos=None, eos=None)


def test_a_key_that_is_absent_has_the_default_of_transformers() -> None:
    """Published files leave keys out: of Gemma 3's text models the most."""
    kinds = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    for kind in kinds:
        few: dict[str, Any] = {
            "hidden_size": 64,
            "num_hidden_layers": 30,
            "num_attention_heads": 32,
            "model_type": kind,
        }
        theirs = transformers.AutoConfig.for_model(**few).to_dict()
        given = few if kind.startswith("gemma") else {name: theirs[name] for name in (*sizes, "model_type")}
        assert written(given) == written(theirs), kind
