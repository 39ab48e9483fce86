"""The model of a config: ours, or that of a class of the user's own."""

import pytest
import torch
from torch import nn

from fmscale.config import ModelConfig, num_parameters
from fmscale.errors import ConfigError
from fmscale.models import Decoder, build, parameters_of
from tests.helpers.own import Bigrams, Nothing, Shapeless


def test_the_section_decides_which_model_is_built() -> None:
    ours = ModelConfig(num_layers=1, dim=16, num_heads=2)
    assert isinstance(build(ours, vocab_size=20), Decoder)
    assert parameters_of(ours, 20) == num_parameters(ours, 20)
    with torch.device("meta"):
        own = build(Bigrams(width=3), vocab_size=20)
    assert isinstance(own, nn.Sequential)
    assert parameters_of(Bigrams(width=3), 20) == 2 * 3 * 20


def test_a_class_that_builds_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="whose `build` is missing") as caught:
        build(Nothing(), vocab_size=20)
    assert caught.value.found == "tests.helpers.own:Nothing"
    assert "def build(self, vocab_size: int | None)" in caught.value.remedy
    with pytest.raises(ConfigError, match="whose `build` returns no module"):
        build(Shapeless(), vocab_size=20)
    with pytest.raises(ConfigError, match=r"cannot be built: ValueError at .*own\.py:\d+: 13 is no width"):
        build(Bigrams(width=13), vocab_size=20)
    with pytest.raises(ConfigError, match="another vocabulary"):
        build(ModelConfig(), vocab_size=None)
