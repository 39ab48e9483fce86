"""A lack of the device's memory as an error with numbers, and with keys in the order of their cost."""

import dataclasses

import pytest
import torch

from fmscale.config import BatchConfig, BatchShape, Config
from fmscale.train.engine.memory import OutOfDeviceMemory, device_memory
from fmscale.train.loop import dry_forwards
from tests.train.engines import config_of

TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.20 GiB is "
    "free. Of the allocated memory 130.10 GiB is allocated by PyTorch. If reserved but unallocated memory is large try"
)
BATCH = BatchShape(global_batch=32, micro_batch=8, accumulation=2, dp_size=2)


def told(config: Config, batch: BatchShape = BATCH, planned: int | None = None) -> OutOfDeviceMemory:
    with pytest.raises(OutOfDeviceMemory) as caught, device_memory(config, batch, "cpu", planned):
        raise torch.OutOfMemoryError(TORCH)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    return caught.value


def test_the_error_has_the_request_the_plan_and_keys_in_order() -> None:
    error = told(config_of(1, "bf16"), planned=28_800_000_000)
    assert error.found == (
        "CUDA out of memory. Tried to allocate 2.00 GiB; the model's state is 28.8 GB of it by the plan"
    )
    keys = "batch.micro_batch: 4", "train.recompute: full", "train.zero_stage: 2", "train.offload_optimizer: true"
    assert error.remedy == f"In this order: {'; '.join(keys)}."


def test_keys_that_are_spent_are_left_out() -> None:
    spent = config_of(3, "bf16", recompute="full", offload_optimizer=True)
    assert told(spent, dataclasses.replace(BATCH, micro_batch=1)).remedy.startswith("Take more ranks")
    fixed = dataclasses.replace(spent, batch=BatchConfig(micro_batch=8, accumulation=2))
    assert told(fixed).remedy == "In this order: batch.micro_batch: 4 with batch.accumulation: 4."
    flat = dataclasses.replace(BATCH, micro_batch=1, forward_tokens=4096)
    assert told(spent, flat).remedy == "In this order: batch.forward_tokens: 2048."


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), device_memory(config_of(1, "bf16"), BATCH, "cpu"):
        raise RuntimeError("another")


def test_a_dry_run_has_a_second_forward_on_a_gpu_where_steps_have_several() -> None:
    single = dataclasses.replace(BATCH, accumulation=1)
    assert [dry_forwards(None, batch, "cuda:0") for batch in (BATCH, single)] == [2, 1]
    assert dry_forwards(None, dataclasses.replace(single, forward_tokens=64), "cuda:0") == 2
    assert [dry_forwards(compiled, BATCH, "cpu") for compiled in (None, False, True)] == [0, 0, 1]
