"""Memory and traffic of a rank at each ZeRO stage, by DeepSpeed's effective settings. Tests count both on ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fmscale.config import BatchShape, Config
from fmscale.config.train import TrainConfig
from fmscale.train.engine.deepspeed_config import NO_SIZES, ModelSizes, deepspeed_config
from fmscale.train.engine.optimizer import MOMENTS

FP32 = 4
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
WHOLE_ELEMENTS = 500_000_000
"""Most gradients that DeepSpeed copies into one buffer where it reduces without buckets: stage 0, stage 1 in bf16."""
DEFAULTS = {
    "use_multi_rank_bucket_allreduce": True,
    "stage3_max_live_parameters": 10**9,
    "stage3_max_reuse_distance": 10**9,
    "sub_group_size": 10**9,
    "zero_hpz_partition_size": 1,
}
"""DeepSpeed's values of settings that ours may leave out."""


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """Numbers of a run from which memory and traffic follow."""

    trained: int
    """Trained parameters."""
    frozen: int = 0
    """Frozen parameters."""
    largest: int = 0
    """Elements of the largest parameter; 0 if it is smaller than a bucket, or not known."""
    world: int = 1
    """Data-parallel ranks."""
    local_size: int = 1
    """Ranks of a node."""
    accumulation: int = 1
    """Forwards of a rank in a step."""
    model: ModelSizes = NO_SIZES
    """Sizes by which stage 3 sets its limits, as the engine does."""


@dataclass(frozen=True, kw_only=True)
class StageNeeds:
    """Bytes of one rank at a ZeRO stage, without activations."""

    stage: int
    parameters: int
    """Weights of forward and backward; at stage 3 a rank's part of them, and those that are gathered at a time."""
    masters: int
    """fp32 weights that the optimizer updates; 0 where they are the parameters themselves."""
    moments: int
    """AdamW's two moments, fp32."""
    gradients: int
    """Gradients on the device while they accumulate."""
    buckets: int
    """Buffers in which gradients travel, and copies that a reduction makes of them."""
    device: int
    """Sum of what lies on the device."""
    host: int
    """Host memory of `offload_optimizer`: masters and moments, gradients, and buffers of the transfer."""
    wire: int
    """Bytes that the rank sends in a step."""
    between: int
    """Bytes that a node sends to other nodes in a step, over all its links."""


def all_stages(
    config: Config, size: RunSize, batch: BatchShape | None, *, on_gpu: bool, offload: bool | None = None
) -> tuple[StageNeeds, ...]:
    """Needs at each stage, by the settings that DeepSpeed would get. `offload` replaces the config's from 1 on."""
    shape = batch or BatchShape(global_batch=size.world, micro_batch=1, accumulation=1, dp_size=size.world)
    given, needs = config.train, []
    for stage in STAGES:
        # Other fields may be refused below stage 3.
        train = replace(
            given if stage == 3 else TrainConfig(precision=given.precision, reduce_precision=given.reduce_precision),
            zero_stage=stage,
            offload_optimizer=stage > 0 and (given.offload_optimizer if offload is None else offload),
        )
        settings = deepspeed_config(train, config.optimizer, shape, "cuda" if on_gpu else "cpu", size.model)
        needs.append(stage_needs(size, train, {**DEFAULTS, **settings["zero_optimization"]}))
    return tuple(needs)


def stage_needs(size: RunSize, train: TrainConfig, zero: Mapping[str, Any]) -> StageNeeds:
    """Memory and traffic under these settings of ZeRO (Rajbhandari et al. 2020, section 3.1, and DeepSpeed 0.19's
    source). A partition is 1/world, rounded up; DeepSpeed pads it by a few elements a parameter or group.
    """
    stage, offload = zero["stage"], "offload_optimizer" in zero
    width, sent = _widths(train)
    halved = sent if sent < FP32 else 0  # a copy in the type of `reduce_precision`
    P, part = size.trained, -(-size.trained // size.world)
    weights = width * (P + size.frozen)
    owned = P if stage == 0 else part
    masters = 0 if stage == 0 and width == FP32 else FP32 * owned
    moments = FP32 * len(MOMENTS) * owned
    host = 0
    if stage == 0:
        gradients = FP32 * P
        copied = min(P, WHOLE_ELEMENTS) * (FP32 + halved) if size.world > 1 else 0
        # In bf16 the copy of the weights that forward and backward use is gone when the reduction begins.
        buckets = max(0, copied - (width * P if masters else 0))
    elif _sums_whole(stage, width, offload):
        # BF16_Optimizer keeps the bf16 gradients beside their fp32 sums, and copies both groups into one buffer.
        gradients = (FP32 + width) * P
        buckets = (FP32 * P if P <= WHOLE_ELEMENTS else 0) + halved * P
    elif stage < 3:
        gradients, buckets = _bucketed(size, zero, width, sent, part)
    else:
        gathered = width * min(P + size.frozen, max(zero["stage3_max_live_parameters"], _kept(size, zero)))
        weights = width * (part - (-size.frozen // size.world)) + gathered
        if (inner := zero["zero_hpz_partition_size"]) > 1:
            weights += width * -(-P // inner)
        gradients = 0 if offload else FP32 * part
        bucket, large = zero["reduce_bucket_size"], size.largest
        copied = sent * min(max(bucket, large), P) + ((width + sent) * large if large > bucket else 0)
        # The optimizer's step copies the gradients of a sub-group, when no weight is gathered.
        stepped = 0 if offload else FP32 * min(part, zero["sub_group_size"])
        buckets = sent * bucket + max(copied, stepped - gathered)
    if offload:
        # The gradients of the update, at stage 3 their sums too; below it the updated weights on their way back.
        host = masters + moments + FP32 * part + (FP32 if stage == 3 else width) * part
        if stage < 3:
            buckets += width * size.largest
            sums = FP32 * part if stage == 2 and width == FP32 and size.accumulation > 1 else 0
            host += width * size.largest + sums
    wire, between = _traffic(size, train, zero)
    on_device = 0 if offload else masters + moments
    return StageNeeds(
        stage=stage,
        parameters=weights,
        masters=masters,
        moments=moments,
        gradients=gradients,
        buckets=buckets,
        device=weights + on_device + gradients + buckets,
        host=host,
        wire=wire,
        between=between,
    )


def _widths(train: TrainConfig) -> tuple[int, int]:
    """Bytes of a weight in forward, and of a gradient between ranks."""
    return 2 if train.precision == "bf16" else FP32, 2 if train.reduce_precision == "bf16" else FP32


def _sums_whole(stage: int, width: int, offload: bool) -> bool:
    """True for stage 1 in bf16 without offload: there DeepSpeed has another optimizer, which sums all gradients."""
    return stage == 1 and width < FP32 and not offload


def _bucketed(size: RunSize, zero: Mapping[str, Any], width: int, sent: int, part: int) -> tuple[int, int]:
    """Gradients on the device and buckets of DeepSpeed's optimizer for stages 1 and 2."""
    P, bucket, stage, offload = size.trained, zero["reduce_bucket_size"], zero["stage"], "offload_optimizer" in zero
    held = FP32 if stage == 1 else width  # stage 1 reduces the fp32 sums
    flat = width < FP32  # an fp32 partition, into which each bucket's result is added
    everywhere = zero["use_multi_rank_bucket_allreduce"]
    piece = min(max(bucket, size.largest), P if everywhere else part)
    buckets = held * bucket * (2 if zero["overlap_comm"] else 1) + (sent * piece if sent != held else 0)
    buckets += (held * piece if flat or everywhere else 0) + (held * size.largest if size.largest > bucket else 0)
    if stage == 1:
        # Whole sums, and the partition, which is made when the first bucket has taken its gradients over.
        later = P if offload and not flat else P - min(bucket, P) + part
        return FP32 * max(P, later), buckets
    # In fp32 a second microbatch has a partition of its own, and the step copies the first.
    return FP32 * part if flat else 0 if offload else 2 * FP32 * part, buckets


def _kept(size: RunSize, zero: Mapping[str, Any]) -> int:
    """Elements that stage 3 keeps gathered from forward to backward: those that are used again soon."""
    return min(size.trained + size.frozen, int(zero["stage3_max_reuse_distance"]) // 2)


def _traffic(size: RunSize, train: TrainConfig, zero: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes that a rank sends in a step, and those that a node sends to other nodes.

    A ring of n ranks sends (n - 1) / n of the tensor for a gather, a reduction to owners or a reduce-scatter, and twice
    this for an all-reduce. As a ring leaves each node once, a node sends as much to other nodes as one of its ranks.
    """
    stage, forwards = zero["stage"], size.accumulation
    width, sent = _widths(train)
    gradients, weights = sent * size.trained, width * (size.trained + size.frozen)
    inner, within = zero["zero_hpz_partition_size"], 0.0
    if stage == 3:
        again = weights - width * _kept(size, zero)
        over = forwards * (weights + again + gradients)
        if inner > 1:
            # All gathers of a step but the first read the copy of `inner` ranks.
            over, rest = weights + forwards * gradients, forwards * again + (forwards - 1) * weights
            within = rest * (inner - 1) / inner
    else:
        all_reduce = stage == 0 or _sums_whole(stage, width, "offload_optimizer" in zero)
        twice = all_reduce or zero["use_multi_rank_bucket_allreduce"]
        over = (forwards if stage == 2 else 1) * (2 if twice else 1) * gradients
        over += width * size.trained if stage else 0
    ring = over * (size.world - 1) / size.world
    return round(ring + within), round(ring) if size.world > size.local_size else 0
