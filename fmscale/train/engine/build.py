"""From the config to an engine: the model, its precision, recompute and compile, the shards."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fmscale.config import BatchShape, Config
from fmscale.models import build
from fmscale.models.decoder import Decoder
from fmscale.objectives.next_token import next_token
from fmscale.runtime.world import World
from fmscale.train.engine.deepspeed import DeepSpeedEngine, born_partitioned
from fmscale.train.engine.deepspeed_config import deepspeed_config
from fmscale.train.engine.module import CastModule, ObjectiveModule


def build_engine(
    config: Config,
    world: World,
    vocab_size: int,
    batch: BatchShape,
    device: str,
    *,
    compiler: str = "inductor",
) -> DeepSpeedEngine:
    """The engine of a new run: weights made of `train.seed` alone, the same at any number of ranks.

    `compiler` is the backend of torch.compile, where that is used.
    """
    train = config.train
    model = _seeded(config, vocab_size, batch, device)
    wrap_blocks(
        model.layers,
        recompute=train.recompute == "full",
        dropout=config.model.dropout > 0,
        compiler=compiler if _compiled(config, device) else None,
    )
    trained = ObjectiveModule(model, next_token)
    cast = train.precision == "bf16" and train.zero_stage == 0
    return DeepSpeedEngine(
        CastModule(trained, torch.bfloat16) if cast else trained,
        trained.logical_names(),
        train,
        config.optimizer,
        world,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        device=device,
    )


def _seeded(config: Config, vocab_size: int, batch: BatchShape, device: str) -> Decoder:
    """The model with its first weights; at stage 3 each rank only ever has one parameter whole."""
    generator = torch.Generator().manual_seed(config.train.seed)
    if config.train.zero_stage < 3:
        model = build(config.model, vocab_size=vocab_size)
        model.init_weights(generator)
        return model
    shards = deepspeed_config(
        config.train,
        config.optimizer,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        device=device,
    )
    with born_partitioned(shards, device) as whole:
        model = build(config.model, vocab_size=vocab_size)
        model.init_weights(generator, whole)
    return model


def wrap_blocks(layers: nn.ModuleList, *, recompute: bool, dropout: bool, compiler: str | None) -> None:
    """Give each block its recompute and its compiled code, from outside: a block knows of neither.

    Compiled by block, not as a whole: one block's code serves all, and compiles in seconds. Recompute is around it,
    as torch compiles nothing that a checkpoint calls. Without `dropout` a block that runs again needs no
    generator's state, which costs four copies a block on a GPU.
    """
    for block in layers:
        if compiler is not None:
            block.forward = torch.compile(block.forward, dynamic=None, backend=compiler)
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=dropout)


def _compiled(config: Config, device: str) -> bool:
    if config.train.compile is None:
        # ZeRO-3 fetches parameters in hooks inside the block, which break the graph at every layer.
        return device.startswith("cuda") and config.train.zero_stage < 3
    return config.train.compile
