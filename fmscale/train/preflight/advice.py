"""The ZeRO stage for a run: the smallest whose memory fits the device, with the reason."""

from dataclasses import dataclass, replace

from fmscale.config import Config
from fmscale.text import human_bytes
from fmscale.train.preflight.activations import activations_of
from fmscale.train.preflight.forecast import Forecast
from fmscale.train.preflight.stages import RunSize, StageNeeds, all_stages

FILLED = 0.9
"""Part of a memory that a plan may fill: CUDA's context, NCCL's buffers and gaps between blocks take some GB of a GPU,
processes and page cache some of a host."""
MOST_DOUBLINGS = 14
"""Doublings of the ranks that are looked at for a run that does not fit."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Memory of devices and nodes, beside the needs of a run."""

    device_memory: int | None
    """Bytes of a device; None if they are not known."""
    host_memory: int | None
    """Bytes of a node's host memory; None if they are not known."""
    host_bytes: int | None
    """Host memory that a node needs at the config's stage: snapshots, offload and prefetch."""
    fits: tuple[bool | None, ...]
    """True for each stage whose state and activations fit FILLED of a device; None if a number is not known."""
    stage: int | None
    """The smallest stage that fits; None if none does, or if a number is not known."""
    reason: str


def advise(
    config: Config, forecast: Forecast, *, device_memory: int | None, host_memory: int | None, on_gpu: bool
) -> Advice:
    """The stage that fits, for memories in bytes."""
    stages, snapshots, size = forecast.stages, forecast.snapshot_bytes_per_node, forecast.size
    fits = tuple(_fits(needs.device, forecast.activations, device_memory) for needs in stages)
    stage = next((number for number, fit in enumerate(fits) if fit), None)
    host_bytes = None
    if size is not None and snapshots is not None:
        host_bytes = snapshots + size.local_size * (stages[config.train.zero_stage].host + forecast.prefetch_bytes)
    if size is None:
        reason = "the size of the model is not known"
    elif device_memory is None:
        reason = "none without the memory of a device: give --device-memory, such as 80GB"
    elif stage is not None:
        needs = (
            f"{human_bytes(stages[stage].device)} of state and {human_bytes(forecast.activations or 0)} of activations"
        )
        reason = f"{stage}, the smallest that fits: {needs} in {FILLED:.0%} of {human_bytes(device_memory)}"
    elif None in fits:
        reason = f"{fits.index(None)} or more: the activations of this model are not known"
    else:
        reason = _ways_out(config, forecast, size, device_memory, on_gpu)
    return Advice(
        device_memory=device_memory,
        host_memory=host_memory,
        host_bytes=host_bytes,
        fits=fits,
        stage=stage,
        reason=reason,
    )


def warnings_of(config: Config, forecast: Forecast, advice: Advice) -> list[str]:
    """Warnings about a stage that does not fit a device, and about too little host memory."""
    warnings, stage = [], config.train.zero_stage
    if advice.fits and advice.fits[stage] is False:
        warnings.append(f"stage {stage} does not fit the memory of a device. Advised stage: {advice.reason}")
    if advice.host_memory and advice.host_bytes and advice.host_bytes > FILLED * advice.host_memory:
        sizes = (advice.host_memory, advice.host_bytes, forecast.snapshot_bytes_per_node or 0)
        has, takes, snapshots = map(human_bytes, sizes)
        warnings.append(
            f"a node has {has} of host memory, and the run takes {takes}: {snapshots} for snapshots, the rest for "
            "offload and prefetch. Take more nodes."
        )
    return warnings


def _fits(state: int, activations: int | None, memory: int | None) -> bool | None:
    if memory is None or (activations is None and state <= FILLED * memory):
        return None
    return state + (activations or 0) <= FILLED * memory


def _ways_out(config: Config, forecast: Forecast, size: RunSize, memory: int, on_gpu: bool) -> str:
    """The needs of a run that fits at no stage, and changes with which it fits."""
    batch, offload = forecast.batch, config.train.offload_optimizer

    def fitting(changed: Config, size: RunSize, offload: bool) -> StageNeeds | None:
        activations = activations_of(changed, forecast.vocab_size, batch)
        stages = all_stages(changed, size, batch, on_gpu=on_gpu, offload=offload)
        return next(
            (needs for needs in stages[1 if offload else 0 :] if _fits(needs.device, activations, memory)), None
        )

    ways: list[str] = []
    full = replace(config, train=replace(config.train, recompute="full"))
    for changed, also in ((config, ""), (full, " with train.recompute: full")):
        if ways:
            break
        if found := fitting(changed, size, offload):
            ways.append(f"stage {found.stage}{also}")
        if not offload and (found := fitting(changed, size, True)):
            host = human_bytes(size.local_size * found.host)
            ways.append(f"train.offload_optimizer at stage {found.stage}{also} and {host} of a node's host memory")
        worlds = (size.world << power for power in range(1, MOST_DOUBLINGS))
        for world in worlds:
            if found := fitting(changed, replace(size, world=world), offload):
                ways.append(f"{world} ranks at stage {found.stage}{also}")
                break
    least = min(forecast.stages, key=lambda needs: needs.device)
    return (
        f"none fits {human_bytes(memory)} {'with' if offload else 'without'} offload: stage {least.stage} takes "
        f"{human_bytes(least.device)} of state and {human_bytes(forecast.activations or 0)} of activations. "
        f"Take {', or '.join(ways) or 'a smaller batch.micro_batch or data.sequence_length'}."
    )
