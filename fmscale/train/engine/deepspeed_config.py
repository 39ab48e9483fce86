"""DeepSpeed's config, of a run's sections. It leaves no precision, and nothing that differs by stage, to a default."""

from typing import Any

from fmscale.config import BatchShape
from fmscale.config.train import OptimizerConfig, TrainConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements that are reduced or gathered at once: 100 MB in bf16, where NCCL reaches its bandwidth; DeepSpeed's
500 M would hold 1 GB for a model of 1 B parameters."""

ALWAYS_WHOLE = 10_000
"""Elements below which stage 3 keeps a parameter whole between forwards: DeepSpeed's default would keep all of a small
model."""


def deepspeed_config(train: TrainConfig, optimizer: OptimizerConfig, batch: BatchShape, device: str) -> dict[str, Any]:
    """The config for deepspeed.initialize."""
    on_gpu = device.startswith("cuda")
    zero: dict[str, Any] = {
        "stage": train.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and train.zero_stage > 1,
        "reduce_bucket_size": BUCKET_ELEMENTS if on_gpu else 5_000_000,
        "allgather_bucket_size": BUCKET_ELEMENTS if on_gpu else 5_000_000,
        # A repeated run must give the same result; round robin changes which rank sums which gradients.
        "round_robin_gradients": False,
    }
    if train.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = ALWAYS_WHOLE
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
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
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
