import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from fmscale.config import ModelConfig, RopeScaling
from fmscale.errors import ConfigError
from fmscale.models import build, load_weights
from fmscale.models.hf import from_hf_config, hf_config, hf_names, open_hf_folder
from tests.models.models import VOCAB, small, tokens

KINDS: dict[str, dict[str, Any]] = {
    "untied, grouped": {},
    "tied, many heads": {"tied": True, "num_kv_heads": None, "rope_theta": 500.0},
    "head_dim": {"head_dim": 12, "hidden_dim": 40, "norm_eps": 1e-3},
    "window": {"window": 5},
    "stretched": {
        "rope_scaling": RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_seq_len=16)
    },
}
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def config_of(kind: str) -> ModelConfig:
    return small(**KINDS[kind]).config


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_exported_says_the_same_in_transformers(kind: str, tmp_path: Path) -> None:
    model = small(**KINDS[kind])
    names = hf_names(model.config)
    save_file(
        {names[name]: p for name, p in model.named_parameters()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    config = hf_config(model.config, VOCAB, bos=1, eos=2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    auto: Any = transformers.AutoModelForCausalLM
    theirs, info = auto.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == config["architectures"][0]
    assert not any(info.values()), info
    row = tokens(2, 40)
    torch.testing.assert_close(model.head(model(row)), theirs(row).logits, **CLOSE)
    if kind == "stretched":
        plain = small()
        plain.load_state_dict(model.state_dict())
        assert not torch.allclose(plain.head(plain(row)), theirs(row).logits, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_transformers_saved_says_the_same_here(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hf_config(config_of(kind), VOCAB, bos=1, eos=2))
    auto: Any = transformers.AutoModelForCausalLM
    theirs = auto.from_config(config, attn_implementation="eager").eval()
    for parameter in theirs.parameters():
        parameter.normal_(0.0, 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    folder = open_hf_folder(tmp_path)
    model = build(folder.config, vocab_size=VOCAB)
    load_weights(model, folder.read, folder.shapes)
    row = tokens(2, 40)
    torch.testing.assert_close(model.eval().head(model(row)), theirs(row).logits, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_comes_back_from_its_json(kind: str) -> None:
    config = config_of(kind)
    back = from_hf_config(json.loads(json.dumps(hf_config(config, VOCAB, bos=None, eos=None))))
    assert (back.head_width, back.kv_heads, back.ffn_width) == (
        config.head_width,
        config.kv_heads,
        config.ffn_width,
    )
    for name in (
        "num_layers",
        "dim",
        "max_seq_len",
        "rope_theta",
        "rope_scaling",
        "norm_eps",
        "tied",
        "window",
    ):
        assert getattr(back, name) == getattr(config, name), name
    assert back.vocab_size == VOCAB


def test_the_llama_3_config_of_transformers_4_is_read() -> None:
    """The published config.json of Llama 3.1 8B, without keys that do not concern the model."""
    published = {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    config = from_hf_config(published)
    assert config.rope_scaling == RopeScaling()
    assert (config.rope_theta, config.max_seq_len, config.head_width) == (500_000.0, 131_072, 128)


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features together; llama comes nearest.*model.softcap 30.0"):
        hf_config(ModelConfig(softcap=30.0), VOCAB, bos=None, eos=None)
    good = hf_config(config_of("untied, grouped"), VOCAB, bos=None, eos=None)
    for changes, message in (
        ({"model_type": "gpt2"}, "not that kind"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "stretches.*yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "stretches.*dynamic"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "stretches.*longrope"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}, "rope_scaling": None}, "bases of their own"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}},
            },
            "Local layers are stretched",
        ),
        ({"partial_rotary_factor": 0.5}, "part of each head.*0.5"),
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 9.0}, "attn_logit_softcapping.*9.0"),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, "hidden_activation"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]}, "kinds.*chunked"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "one for each layer"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_hf_config({**good, **changes})
    with pytest.raises(ConfigError, match="lacks a number"):
        from_hf_config({name: value for name, value in good.items() if name != "hidden_size"})
    with pytest.raises(ConfigError, match="Hugging Face's format"):
        open_hf_folder(tmp_path)


def test_a_tensor_that_the_decoder_lacks_is_refused(tmp_path: Path) -> None:
    model = small()
    names = hf_names(model.config)
    weights = {names[name]: p.detach() for name, p in model.named_parameters()}
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model.config, VOCAB, bos=None, eos=None)))
    folder = open_hf_folder(tmp_path)
    with pytest.raises(ConfigError, match="q_norm"):
        load_weights(model, folder.read, folder.shapes)


def test_a_config_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ConfigError, match=r"cannot be used.*recursion"):
        open_hf_folder(tmp_path)
