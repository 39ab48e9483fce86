"""Activations of the plan against the tensors that autograd saves, counted on the meta device at full size."""

import sys
from typing import Any

import pytest
import torch
import yaml

from fmscale.config.model import ModelConfig
from fmscale.config.train import TrainConfig
from fmscale.models import build
from fmscale.train.preflight.activations import activation_bytes
from tests.test_habits import ROOT
from tests.train.engines import GEMMA

VOCAB, B, T = 128_256, 2, 2048
CHUNK = 2**29
"""Bytes of logits that the head holds at once, and does not save."""


def model(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((ROOT / f"configs/model/{name}.yaml").read_text())["model"] | changes)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take the Triton kernels, which compute nothing on the meta device but save their tensors."""
    for name in ("rms_norm", "swiglu", "rope", "attention.op", "linear_cross_entropy"):
        monkeypatch.setattr(sys.modules[f"fmscale.kernels.{name}"], "choose", lambda *_: "triton")


def saved_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the distinct storages that a forward of B x T tokens saves, without the parameters."""
    with torch.device("meta"):
        built = build(config, vocab_size=VOCAB).to(dtype)
        tokens, weights = torch.zeros((B, T), dtype=torch.int64), torch.ones((B, T))
        documents = torch.zeros(9, dtype=torch.int32)
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = built(tokens, positions_BT=tokens, cu_seqlens=documents)
        loss = built.head(hidden, labels=tokens, token_weights=weights)
    assert loss[0].requires_grad
    given = {parameter.untyped_storage()._cdata for parameter in built.parameters()}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for storage, size in storages.items() if storage not in given)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (model("8b"), "bf16"),
        (model("1b", num_layers=4), "fp32"),
        (model("1b", num_layers=4, **GEMMA | {"window": 512, "activation": "gelu_tanh"}), "bf16"),
    ],
    ids=["8b", "1b in fp32", "all of Gemma"],
)
@pytest.mark.usefixtures("on_a_gpu")
def test_a_forward_saves_what_the_plan_says(config: ModelConfig, dtype: Any) -> None:
    planned = activation_bytes(config, VOCAB, B * T, TrainConfig(precision=dtype))
    found = saved_bytes(config, torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert planned - CHUNK == pytest.approx(found, rel=0.05)


def test_recompute_keeps_the_inputs_of_blocks_and_one_block() -> None:
    config, tokens = model("70b"), 8192
    full = activation_bytes(config, VOCAB, tokens, TrainConfig(precision="bf16", recompute="full"))
    inputs = 80 * tokens * 8192 * 2
    head = tokens * 2 * 8192 * 2 + VOCAB * 8192 * 2 + CHUNK
    assert full - inputs == pytest.approx(head, rel=0.01)
    longer = activation_bytes(config, VOCAB, 4 * tokens, TrainConfig(precision="bf16", recompute="full"))
    block = 2 * (4 * 8192 + 2 * 8192 + 2 * 1024 + 3 * 28_672) * 4 * tokens
    assert longer - 4 * inputs == pytest.approx(block, rel=0.01)
