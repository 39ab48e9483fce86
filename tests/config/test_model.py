from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fmscale.config import ModelConfig, flops_per_token, num_parameters
from fmscale.config.reader.load import load_section, read_extended, shipped_configs
from fmscale.config.reader.tree import YamlTable
from fmscale.errors import ConfigError
from fmscale.models import build

SHAPES = [
    ModelConfig(num_layers=2, dim=32, num_heads=4, num_kv_heads=2, attention_backend="eager"),
    ModelConfig(num_layers=3, dim=48, num_heads=2, head_dim=16, hidden_dim=80, tied=True, attention_backend="eager"),
    ModelConfig(num_layers=2, dim=32, num_heads=4, num_kv_heads=2, qkv_bias=True, qk_norm=True, post_norms=True,
                attention_backend="eager"),
]  # fmt: skip
PUBLISHED = {"1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248, "70b": 70_553_706_496}
"""Parameters of the Llama 3 models, by their model cards' safetensors."""


@pytest.mark.parametrize("config", SHAPES)
def test_parameters_are_counted_right(config: ModelConfig) -> None:
    model = build(config, vocab_size=100)
    assert num_parameters(config, 100) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", SHAPES)
def test_flops_are_those_that_torch_counts(config: ModelConfig) -> None:
    """torch counts every key for each query; the causal mask needs (T + 1) / 2 of T."""
    T, V = 24, 100
    model = build(config, vocab_size=V)
    model.init_weights(torch.Generator().manual_seed(0))
    counter = FlopCounterMode(display=False)
    with counter:
        model.head(model(torch.zeros(1, T, dtype=torch.int64))).sum().backward()
    attention = 12 * config.num_layers * config.num_heads * config.head_width * T
    unmasked = flops_per_token(config, V, T) + attention * (1 - (T + 1) / (2 * T))
    assert unmasked * T == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_a_window_needs_fewer_flops() -> None:
    whole, near = (ModelConfig(num_layers=1, dim=8, num_heads=2, window=w) for w in (None, 3))
    keys = [min(i + 1, 3) for i in range(10)]
    saved = 12 * 8 * (55 - sum(keys)) / 10
    assert flops_per_token(whole, 5, 10) - flops_per_token(near, 5, 10) == pytest.approx(saved)
    both = [replace(each, num_layers=3) for each in (whole, near)]
    mixed = flops_per_token(replace(both[1], global_layers=(0, 2)), 5, 10)
    assert flops_per_token(both[0], 5, 10) - mixed == pytest.approx(saved)


def test_every_shipped_model_is_valid_and_has_the_size_it_says() -> None:
    shipped = {
        name.removeprefix("model/").removesuffix(".yaml"): path
        for name, path in shipped_configs().items()
        if name.startswith("model/")
    }
    models = {}
    for name, path in shipped.items():
        tree = read_extended(path)
        assert set(tree.entries) == {"model"}, path
        section = tree.entries["model"]
        assert isinstance(section, YamlTable)
        models[name] = load_section(ModelConfig, section)
    assert models.keys() >= {"tiny", "125m", "350m", *PUBLISHED}
    assert num_parameters(models["tiny"], 8192) < 4e6
    assert {name: num_parameters(models[name], 128_256) for name in PUBLISHED} == PUBLISHED
    assert num_parameters(models["125m"], 50_257) == pytest.approx(124e6, rel=0.01)
    assert num_parameters(models["350m"], 50_257) == pytest.approx(355e6, rel=0.01)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"dim": 30, "num_heads": 4}, "num_heads must divide dim"),
        ({"dim": 36, "num_heads": 4}, "head_dim must be even"),
        ({"num_heads": 12, "num_kv_heads": 5}, "num_kv_heads must divide num_heads"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"window": 0}, "window must be at least 1"),
        ({"softcap": 0.0}, "softcap must be above 0"),
        ({"window": 4, "global_layers": (12,)}, "global_layers must be layers of the model.*from 0 to 11"),
        ({"window": 4, "global_layers": (3, 3)}, "global_layers must be layers"),
        ({"global_layers": (3,)}, "global_layers says something only where window"),
        ({"local_rope_theta": 1e4}, "local_rope_theta says something only where window"),
        ({"logit_softcap": -1.0}, "logit_softcap must be above 0"),
    ],
)
def test_numbers_that_do_not_come_out_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**numbers)
