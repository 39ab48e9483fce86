"""The advised stage and the memory of a node, for models of known size on known machines."""

import dataclasses
from typing import Any

import pytest
import yaml

from fmscale.config import BatchConfig, Config, DataConfig, ModelConfig, SourceConfig, TrainConfig, derive_batch
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.config.derived import num_parameters
from fmscale.config.model import InitModelConfig
from fmscale.train.preflight.advice import Advice, advise, warnings_of
from fmscale.train.preflight.forecast import Forecast, forecast
from tests.test_habits import ROOT

H200 = 141 * 10**9
LLAMA_VOCAB = 128_256


def run(path: str, *, micro_batch: int = 1, length: int = 8192, **train: Any) -> Config:
    settings: dict[str, Any] = {"zero_stage": 3, "precision": "bf16", "device": "cuda", **train}
    given = yaml.safe_load((ROOT / f"configs/{path}.yaml").read_text())
    return Config(
        data=DataConfig(sources=(SourceConfig(dataset="none"),), sequence_length=length),
        model=ModelConfig(**given["model"]),
        batch=BatchConfig(micro_batch=micro_batch, accumulation=1),
        train=TrainConfig(**settings),
    )


def look(config: Config, world: int, host: int | None = None, device: int | None = H200) -> tuple[Forecast, Advice]:
    vocab_size = config.decoder("this test").vocab_size or LLAMA_VOCAB
    found = forecast(
        config,
        world,
        batch=derive_batch(config.batch, world),
        steps=None,
        tokens=None,
        vocab_size=vocab_size,
        parameters=num_parameters(config.decoder("this test"), vocab_size),
        token_bytes=4,
        on_gpu=True,
    )
    return found, advise(config, found, device_memory=device, host_memory=host, on_gpu=True)


def test_70_b_does_not_fit_8_h200_without_offload() -> None:
    config = run("model/70b", recompute="full")
    found, advice = look(config, 8)
    assert advice.fits == (False,) * 4
    assert advice.stage is None
    states = 18 * 70.55e9 / 8
    # gathered at a time, by the limits of the engine: the head and two blocks
    assert found.stages[3].parameters == 2 * -(-(found.parameters or 0) // 8) + 2 * (128_256 * 8192 + 2 * 855_654_400)
    assert states < found.stages[3].device < states + 20e9
    assert "none fits 131.3 GiB without offload: stage 3 takes" in advice.reason
    assert "Take train.offload_optimizer at stage 3 and" in advice.reason
    assert "or 16 ranks at stage 3." in advice.reason
    assert warnings_of(config, found, advice)[0].startswith(
        "stage 3 does not fit the memory of a device. Advised stage: none"
    )


def test_70_b_without_recompute_is_told_to_recompute() -> None:
    advice = look(run("model/70b"), 8)[1]
    assert "Take train.offload_optimizer at stage 3 with train.recompute: full and" in advice.reason


def test_70_b_with_offload_fits_the_gpus_of_a_node_and_not_its_host() -> None:
    config = run("model/70b", recompute="full", offload_optimizer=True)
    found, advice = look(config, 8, host=2 * 10**12)
    assert advice.stage == 3
    assert found.snapshot_bytes_per_node == pytest.approx(12 * 70.55e9, rel=1e-3)
    # masters and moments, the gradients of the update, and their sums
    assert 8 * found.stages[3].host == pytest.approx((12 + 4 + 4) * 70.55e9, rel=1e-3)
    assert advice.host_bytes == pytest.approx(32 * 70.55e9, rel=0.01)
    (warning,) = warnings_of(config, found, advice)
    assert "a node has 1.8 TiB of host memory, and the run takes 2.1 TiB: 788.5 GiB for snapshots" in warning
    assert warnings_of(config, *look(config, 16, host=2 * 10**12)) == []


def test_two_snapshots_take_twice_the_memory() -> None:
    config = run("model/8b")
    twice = dataclasses.replace(config, checkpoint=CheckpointConfig(buffers=2))
    one, two = (look(each, 64)[0].snapshot_bytes_per_node or 0 for each in (config, twice))
    assert two == 2 * one
    assert one == pytest.approx(12 * 8.03e9 / 8, rel=1e-3)  # of 8 ranks of 64


def test_1_3_b_on_one_gpu() -> None:
    """The run of the GPU hour: 28.8 GB of state at stage 1."""
    found, advice = look(run("run/h200", micro_batch=8, length=2048, zero_stage=1), 1)
    parameters = found.parameters or 0
    assert found.stages[1].device == 20 * parameters
    assert found.stages[1].device == pytest.approx(28.8e9, rel=0.01)
    assert found.activations == pytest.approx(28e9, rel=0.1)
    assert [needs.wire for needs in found.stages] == [0, 0, 0, 0]
    assert advice.stage == 0
    small = look(run("run/h200", micro_batch=8, length=2048), 8, device=40 * 10**9)[1]
    assert small.fits == (False, False, True, True)
    assert small.stage == 2
    assert small.reason.startswith("2, the smallest that fits: ")


def test_without_a_size_nothing_is_advised() -> None:
    advice = look(run("model/8b"), 8, device=None)[1]
    assert (advice.stage, advice.fits) == (None, (None,) * 4)
    assert "give --device-memory" in advice.reason
    config = dataclasses.replace(run("model/8b"), model=InitModelConfig())
    unknown: dict[str, Any] = dict.fromkeys(("batch", "steps", "tokens", "vocab_size", "parameters"))
    found = forecast(config, 8, **unknown, token_bytes=4)
    assert advise(config, found, device_memory=H200, host_memory=None, on_gpu=True).fits == ()


def test_state_alone_can_be_too_large_but_not_fit() -> None:
    """The activations of a model of the user's own are not known."""
    config = run("model/8b")
    found = dataclasses.replace(look(config, 8)[0], activations=None)
    advice = advise(config, found, device_memory=80 * 10**9, host_memory=None, on_gpu=True)
    assert advice.fits == (False, False, None, None)
    assert advice.reason == "2 or more: the activations of this model are not known"
