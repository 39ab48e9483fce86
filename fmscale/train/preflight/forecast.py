"""Needs of a run, derived from its config alone: tokens, compute, memory, checkpoints, reads."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from fmscale.config import BatchShape, Config
from fmscale.config.derived import flops_per_token
from fmscale.config.model import ModelConfig
from fmscale.config.peaks import peak_flops
from fmscale.data.reading.planner import HORIZON_STEPS
from fmscale.errors import ConfigError
from fmscale.models.lora import wrap
from fmscale.models.protocol import build
from fmscale.train.engine.deepspeed_config import NO_SIZES, sizes_of
from fmscale.train.engine.optimizer import MOMENTS
from fmscale.train.preflight.activations import activations_of
from fmscale.train.preflight.stages import FP32, RunSize, StageNeeds, all_stages

STATES = 1 + len(MOMENTS)
"""fp32 numbers of a parameter in a checkpoint: the master and the moments."""
NODE_RANKS = 8
"""Ranks of a node where `launch.procs_per_node` does not give them."""


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
    activations: int | None
    """Bytes of a forward's activations on a rank, for decoders (`activation_bytes`)."""
    size: RunSize | None
    """Numbers from which the needs of the stages follow."""
    stages: tuple[StageNeeds, ...]
    checkpoint_bytes: int | None
    """Bytes of a complete checkpoint, of all ranks together."""
    checkpoint_bytes_per_rank: int | None
    """Bytes of a rank's share."""
    snapshot_bytes_per_node: int | None
    """Host memory of a node for snapshots: `checkpoint.buffers` times its ranks' shares."""
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


def without_memory(config: Config, vocab_size: int | None) -> nn.Module:
    """The run's model on the meta device."""
    with torch.device("meta"):
        model: nn.Module = build(config.model, vocab_size=vocab_size)
        if config.adapter is not None:
            wrap(model, config.adapter)
    return model


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
    on_gpu: bool = False,
) -> Forecast:
    """The derived numbers, from the numbers that `Forecast` explains (`batch` is None if it has no solution).

    Args, beside those:
        token_bytes: width of a stored token.
        mfu: assumed share of the peak of `device`, in place of `tokens_per_second`.
        device: name of a device whose peak is known, such as H100.
        on_gpu: True for the sizes of buckets on GPUs.
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
    size = None
    if parameters:
        whole = decoder if config.adapter is None else None
        sizes = NO_SIZES
        with suppress(ConfigError):  # a vocabulary other than the tokenizer's, which is told elsewhere
            sizes = sizes_of(without_memory(config, vocab_size))
        size = RunSize(
            trained=parameters,
            frozen=frozen,
            largest=whole.dim * max(vocab_size, whole.ffn_width) if whole and vocab_size else 0,
            world=world,
            local_size=min(world, config.launch.procs_per_node or NODE_RANKS),
            accumulation=batch.accumulation if batch else 1,
            model=sizes,
        )
    stages = all_stages(config, size, batch, on_gpu=on_gpu) if size else ()
    shared = -(-checkpoint // world) if checkpoint else None
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
        activations=activations_of(config, vocab_size, batch),
        size=size,
        stages=stages,
        checkpoint_bytes=checkpoint,
        checkpoint_bytes_per_rank=shared,
        snapshot_bytes_per_node=config.checkpoint.buffers * shared * size.local_size if shared and size else None,
        tokens_per_second=tokens_per_second,
        read_bytes_per_second=tokens_per_second * row_bytes / length if tokens_per_second else None,
        seconds=tokens / tokens_per_second if tokens and tokens_per_second else None,
        decoded_bytes=decoded_bytes,
        prefetch_bytes=config.data.memory_bytes,
        prefetch_steps=ahead,
    )
