"""DeepSpeed's config, of a run's sections. It leaves no precision, and nothing that differs by stage, to a default."""

import math
from typing import Any

from torch import nn

from fmscale.config import BatchShape, Config
from fmscale.config.train import OptimizerConfig, TrainConfig
from fmscale.errors import ConfigError
from fmscale.runtime.world import World

BUCKET_ELEMENTS = 50_000_000
"""Elements that are reduced or gathered at once: 100 MB in bf16, where NCCL reaches its bandwidth; DeepSpeed's
500 M would hold 1 GB for a model of 1 B parameters."""

LIVE_ELEMENTS = 1_000_000_000
"""Elements that stage 3 holds whole at most, unless a model's head and two blocks are more: DeepSpeed keeps a parameter
that it uses again within so many, and fetches nothing ahead where more are whole."""

ALWAYS_WHOLE = 10_000
"""Elements below which stage 3 keeps a parameter whole between forwards: DeepSpeed's default would keep all of a small
model."""


ModelSizes = tuple[int, int, int]
"""Sizes by which stage 3 fetches: elements of the largest block (an entry of a ModuleList), elements of the largest
parameter outside of blocks (an embedding or a head), and the model's width, the smaller side of its matrices."""
NO_SIZES: ModelSizes = (0, 0, 0)


def deepspeed_config(
    train: TrainConfig, optimizer: OptimizerConfig, batch: BatchShape, device: str, sizes: ModelSizes = NO_SIZES
) -> dict[str, Any]:
    """The config for deepspeed.initialize; without the model's `sizes`, that for deepspeed.zero.Init.

    Stage 1 in bf16 is DeepSpeed's BF16_Optimizer: it keeps bf16 gradients beside the fp32 sums, and reduces the sums
    of all parameters once a step, at its end. Stages 2 and 3 reduce at every microbatch, beside backward.
    """
    on_gpu = device.startswith("cuda")
    bucket = BUCKET_ELEMENTS if on_gpu else 5_000_000
    zero: dict[str, Any] = {
        "stage": train.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and train.zero_stage > 1,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # Each gradient goes to its owner alone: an all-reduce would carry twice the bytes.
        "use_multi_rank_bucket_allreduce": False,
        # A repeated run must give the same result; round robin changes which rank sums which gradients.
        "round_robin_gradients": False,
    }
    if train.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = ALWAYS_WHOLE
        zero["zero_hpz_partition_size"] = train.zero_hpz_partition_size
        # Otherwise zero.Init replaces torch's linear layer by a Python function, for good and in the whole process.
        zero["memory_efficient_linear"] = False
        block, other, width = sizes
        # A matrix of dim x dim that is larger than the bucket would be reduced alone.
        zero["reduce_bucket_size"] = max(bucket, width**2)
        zero["stage3_prefetch_bucket_size"] = max(BUCKET_ELEMENTS, block)
        zero["stage3_max_live_parameters"] = max(LIVE_ELEMENTS, other + 2 * block)
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "steps_per_print": 2**62,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "communication_data_type": train.reduce_precision or "fp32",
        "wall_clock_breakdown": False,
        # At stage 0 the engine here clips: DeepSpeed's fp32 path reports no norm and checks nothing, and its
        # default is to clip at 1.
        "gradient_clipping": optimizer.clip_norm if train.zero_stage else 0.0,
    }
    if train.zero_stage and train.precision == "bf16":
        # Without the check a non-finite gradient goes into the masters at stages 2 and 3.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def sizes_of(model: nn.Module) -> ModelSizes:
    """The sizes of a model; parts on other ranks count."""
    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    shapes = {id(p): tuple(getattr(p, "ds_shape", p.shape)) for p in model.parameters()}
    return (
        max((sum(math.prod(shapes[id(p)]) for p in block.parameters()) for block in blocks), default=0),
        max((math.prod(shape) for number, shape in shapes.items() if number not in inside), default=0),
        max((min(shape) for shape in shapes.values() if len(shape) > 1), default=0),
    )


def check_hpz(config: Config, ranks: int, world: World | None = None) -> None:
    """Raise ConfigError unless each group of `train.zero_hpz_partition_size` successive ranks lies on one node, and
    all groups are full. Without `world` a node has `launch.procs_per_node` of the `ranks`, if that is given.
    """
    size = config.train.zero_hpz_partition_size
    on_node = world.local_size if world else config.launch.procs_per_node or ranks
    # Ranks that fill nodes in order: the numbers of a node's ranks begin at a multiple of the size.
    apart = world is not None and (world.rank - world.local_rank) % size
    if ranks % size or min(on_node, ranks) % size or apart:
        place = f", local rank {world.local_rank} of rank {world.rank}" if world and apart else ""
        raise ConfigError(
            f"{config.place('train.zero_hpz_partition_size')} must divide the ranks of each node, and ranks must fill "
            "one node after another",
            found=f"{size}, {ranks} ranks, {on_node} on this node{place}",
            remedy="Take the number of GPUs of a node, or 1; srun places ranks so with --distribution=block.",
        )
