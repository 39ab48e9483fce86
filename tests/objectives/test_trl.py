"""Losses equal to those of TRL's trainers on the same weights and tokens (tests/fixtures/make_preferences.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.config import ModelConfig
from fmscale.config.objective import (
    DpoConfig,
    IpoConfig,
    KtoConfig,
    ObjectiveConfig,
    OrpoConfig,
    RewardConfig,
    SimpoConfig,
)
from fmscale.data.samples.protocol import Draw
from fmscale.data.samples.rendered import RenderedSamples
from fmscale.models import build
from fmscale.models.hf import from_hf_config, hf_names
from fmscale.objectives import make_objective
from tests.fixtures.make_preferences import draw
from tests.helpers.rendered import rendered
from tests.train.preferences import forward_of

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "preferences_trl.json").read_text())
EQUAL = 1e-6
"""Relative."""


def model_of(seed: int, score: bool = False) -> Any:
    """The decoder with the fixture's weights of a seed; those of a reward model have no output projection."""
    found = from_hf_config({"model_type": "llama", "vocab_size": GOLDEN["vocab_size"], **GOLDEN["config"]})
    config = ModelConfig(**{**vars(found), "score": score})
    model = build(config, vocab_size=GOLDEN["vocab_size"])
    names = hf_names(config)
    own = dict(model.named_parameters())
    weights = draw(seed, {theirs: tuple(own[name].shape) for name, theirs in names.items()})
    for name, theirs in names.items():
        own[name].data.copy_(weights[theirs])
    return model


def loss_of(config: ObjectiveConfig, policy: str = "policy", context: Any = None) -> float:
    seeds = GOLDEN["seeds"]
    model = model_of(seeds[policy], score=config.kind == "reward")
    model.reference = model_of(seeds["reference" if policy == "policy" else "policy"])
    spec = RenderedSamples(too_long="refuse", max_tokens=None)
    records = rendered(GOLDEN["pairs"]).to_pylist()
    samples = [spec.make(spec.decode(record), Draw(0, 0), 10**6) for record in records]
    objective = make_objective(config)
    loss = objective(model, objective.collate(forward_of(samples)), context)
    return float(loss.sum.detach() / loss.count)


@pytest.mark.parametrize("case", GOLDEN["dpo"], ids=lambda case: case["loss"])
def test_dpo_and_ipo(case: dict[str, Any]) -> None:
    loss, smoothing = case["loss"], case["label_smoothing"]
    config: ObjectiveConfig
    if loss == "ipo":
        config = IpoConfig()
    elif loss == "sigmoid_norm":
        config = DpoConfig(per="token")
    else:
        config = DpoConfig(loss=loss, label_smoothing=smoothing)
    assert loss_of(config) == pytest.approx(case["value"], rel=EQUAL)


def test_kto_at_their_divergence() -> None:
    z = torch.tensor(GOLDEN["kto"]["z"])
    assert z > 0
    assert loss_of(KtoConfig(), "reference", z) == pytest.approx(GOLDEN["kto"]["value"], rel=EQUAL)


def test_objectives_without_a_reference() -> None:
    assert loss_of(SimpoConfig()) == pytest.approx(GOLDEN["simpo"], rel=EQUAL)
    assert loss_of(OrpoConfig()) == pytest.approx(GOLDEN["orpo"], rel=EQUAL)


def test_a_reward_model() -> None:
    """TRL reads the whole text, its EOS included, from the padded last token."""
    assert loss_of(RewardConfig()) == pytest.approx(GOLDEN["reward"], rel=EQUAL)
