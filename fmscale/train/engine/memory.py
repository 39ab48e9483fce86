"""A lack of memory on the device, told with its numbers and with the keys that need less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fmscale.config import BatchShape, Config
from fmscale.errors import FmscaleError


class OutOfDeviceMemory(FmscaleError):
    """The device has no memory for a tensor."""


@contextmanager
def device_memory(config: Config, batch: BatchShape, device: str, planned: int | None = None) -> Iterator[None]:
    """Raise OutOfDeviceMemory where torch has no memory on the device inside the block. `planned` are the bytes of the
    model's state there, by the plan.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = ". ".join(str(error).split(". ")[:2])
        state = [] if planned is None else [f"the model's state is {planned / 1e9:.1f} GB of it by the plan"]
        ways = "; ".join(_ways(config, batch))
        raise OutOfDeviceMemory(
            f"{device} has no memory left for a forward, a backward or an update",
            found="; ".join([asked.rstrip("."), *_numbers(device), *state]),
            remedy=f"In this order: {ways}." if ways else "Take more ranks, a shorter sequence or a smaller model.",
        ) from error


def _numbers(device: str) -> Iterator[str]:
    if not device.startswith("cuda"):
        return
    free, total = torch.cuda.mem_get_info(device)
    blocks = [block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]]
    amounts = {
        "free": free,
        "reserved by torch": torch.cuda.memory_reserved(device),
        "in tensors": torch.cuda.memory_allocated(device),
        "largest block within the reserved": max((b["size"] for b in blocks if b["state"] == "inactive"), default=0),
    }
    yield ", ".join(f"{amount / 1e9:.1f} GB {name}" for name, amount in amounts.items()) + f", of {total / 1e9:.1f} GB"


def _ways(config: Config, batch: BatchShape) -> Iterator[str]:
    """Keys that need less memory, those first that cost the least."""
    train = config.train
    if batch.forward_tokens:
        yield f"batch.forward_tokens: {batch.forward_tokens // 2}"
    elif batch.micro_batch > 1:
        more = f" with batch.accumulation: {2 * batch.accumulation}" if config.batch.accumulation else ""
        yield f"batch.micro_batch: {batch.micro_batch // 2}{more}"
    if train.recompute == "none":
        yield "train.recompute: full"
    if train.zero_stage < 3 and batch.dp_size > 1:
        yield f"train.zero_stage: {2 if train.zero_stage < 2 else 3}"
    if not train.offload_optimizer:
        yield "train.offload_optimizer: true" + ("" if train.zero_stage else " with train.zero_stage: 1")
