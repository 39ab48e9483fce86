"""Needs of a run, derived from its config alone: tokens, compute, memory, checkpoints, reads."""

from dataclasses import dataclass

from fmscale.config import BatchShape, Config
from fmscale.config.derived import flops_per_token
from fmscale.config.model import ModelConfig
from fmscale.config.peaks import peak_flops
from fmscale.config.train import TrainConfig
from fmscale.data.reading.planner import HORIZON_STEPS
from fmscale.train.engine.optimizer import MOMENTS

FP32 = 4
STATES = 1 + len(MOMENTS)
"""fp32 numbers of a parameter in a checkpoint: the master and the moments."""
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class StageBytes:
    """Bytes of model state on one rank at a ZeRO stage; activations and communication buffers come on top."""

    stage: int
    parameters: int
    """Weights of forward and backward."""
    masters: int
    """fp32 weights that the optimizer updates; 0 where they are the parameters themselves."""
    moments: int
    """AdamW's two moments, fp32."""
    gradients: int
    """Accumulated gradients, fp32."""
    device: int
    """Sum of what lies on the device."""
    host: int
    """Part that `offload_optimizer` puts into host memory instead."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Derived numbers of a run; a number is None if it depends on an unknown number."""

    world: int
    """Data-parallel ranks."""
    batch: BatchShape | None
    vocab_size: int | None
    """Rows of the embedding."""
    parameters: int | None
    """Trained numbers of the model."""
    frozen: int
    """Frozen numbers: of an adapter's base, or of the copy that `objective.reference: model` keeps."""
    steps: int | None
    tokens_per_step: int | None
    """global_batch x sequence_length."""
    tokens: int | None
    flops_per_token: float | None
    """FLOPs of forward and backward, without recompute."""
    flops: float | None
    stages: tuple[StageBytes, ...]
    checkpoint_bytes: int | None
    """Bytes of a complete checkpoint, of all ranks together."""
    checkpoint_bytes_per_rank: int | None
    """Bytes of a rank's share."""
    tokens_per_second: float | None
    """The assumed speed of all ranks together."""
    read_bytes_per_second: float | None
    """Rate of the store or cache at that speed, all ranks together, each row read once."""
    seconds: float | None
    """Duration of the run at that speed."""
    decoded_bytes: int
    """Part of `prefetch_bytes` for flat forwards that are made ahead; 0 for rows."""
    prefetch_bytes: int
    """Host memory of a rank for rows read ahead."""
    prefetch_steps: int | None
    """Steps of rows that this memory holds, or the most that is planned ahead."""


def state_bytes(parameters: int, train: TrainConfig, stage: int, world: int, frozen: int = 0) -> StageBytes:
    """Bytes of model state of a rank (Rajbhandari et al. 2020, ZeRO, section 3.1; our precisions).

    Masters, moments and accumulated gradients are fp32 in both precisions. In fp32 at stage 0 the parameters are
    the masters; from stage 1 on DeepSpeed keeps a partition of masters beside them. In bf16 at stage 0 the
    masters are the module's and a bf16 copy lives during forward and backward. A partition is 1/world, rounded
    up; DeepSpeed pads it by a few elements a parameter group. `frozen` parameters have weights alone.
    """
    bf16 = train.precision == "bf16"
    part = -(-parameters // world)
    weights = (part - (-frozen // world) if stage == 3 else parameters + frozen) * (2 if bf16 else FP32)
    masters = (part if stage else parameters) * FP32 if bf16 or stage else 0
    moments = (part if stage else parameters) * FP32 * len(MOMENTS)
    gradients = (part if stage >= 2 else parameters) * FP32
    host = masters + moments if train.offload_optimizer and stage else 0
    return StageBytes(
        stage=stage,
        parameters=weights,
        masters=masters,
        moments=moments,
        gradients=gradients,
        device=weights + masters + moments + gradients - host,
        host=host,
    )


def forecast(
    config: Config,
    world: int,
    *,
    batch: BatchShape | None,
    steps: int | None,
    tokens: int | None,
    vocab_size: int | None,
    parameters: int | None,
    frozen: int = 0,
    token_bytes: int,
    decoded_bytes: int = 0,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    device: str = "",
) -> Forecast:
    """The derived numbers, from the numbers that `Forecast` explains (`batch` is None if it has no solution).

    Args, beside those:
        token_bytes: width of a stored token.
        mfu: assumed share of the peak of `device`, in place of `tokens_per_second`.
        device: name of a device whose peak is known, such as H100.
    """
    length = config.data.sequence_length
    decoder = config.model if type(config.model) is ModelConfig else None
    flops = (
        flops_per_token(decoder, vocab_size, length, (parameters or 0) if config.adapter is not None else 0)
        if decoder and vocab_size
        else None
    )
    peak = peak_flops(device)
    if mfu is not None and peak is not None and flops is not None:
        tokens_per_second = mfu * peak * world / flops
    tokens_per_step = batch.global_batch * length if batch and not batch.forward_tokens else None
    # One token more than the model reads: the label of the last token.
    row_bytes = (length + 1) * token_bytes
    # The base of an adapter is in the checkpoint of its own run.
    copied = frozen * (2 if config.train.precision == "bf16" else FP32) if config.adapter is None else 0
    checkpoint = parameters * FP32 * STATES + copied if parameters else None
    ahead = None
    if batch and not batch.forward_tokens:
        ahead = min(HORIZON_STEPS, config.data.memory_bytes // (row_bytes * -(-batch.global_batch // world)))
    return Forecast(
        world=world,
        batch=batch,
        vocab_size=vocab_size,
        parameters=parameters,
        frozen=frozen,
        steps=steps,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        flops_per_token=flops,
        flops=flops * tokens if flops and tokens else None,
        stages=tuple(state_bytes(parameters, config.train, stage, world, frozen) for stage in STAGES)
        if parameters
        else (),
        checkpoint_bytes=checkpoint,
        checkpoint_bytes_per_rank=-(-checkpoint // world) if checkpoint else None,
        tokens_per_second=tokens_per_second,
        read_bytes_per_second=tokens_per_second * row_bytes / length if tokens_per_second else None,
        seconds=tokens / tokens_per_second if tokens and tokens_per_second else None,
        decoded_bytes=decoded_bytes,
        prefetch_bytes=config.data.memory_bytes,
        prefetch_steps=ahead,
    )
