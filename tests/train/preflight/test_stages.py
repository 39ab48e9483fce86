"""Memory and traffic of each ZeRO stage: the plan's figures against the tensors and collectives of real engines."""

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fmscale.config import Config
from fmscale.config.derived import num_parameters
from fmscale.config.train import TrainConfig
from fmscale.train.engine.deepspeed_config import deepspeed_config
from fmscale.train.preflight.stages import DEFAULTS, RunSize, StageNeeds, all_stages, stage_needs
from tests.helpers.ranks import run_ranks
from tests.train.engines import VOCAB, config_of, make_engine, train

ACCUMULATION = 2
SENT: dict[str, Callable[..., float]] = {
    "all_reduce": lambda tensor, *_, **rest: 2 * tensor.nbytes,
    "reduce": lambda tensor, *_, **rest: tensor.nbytes,
    "all_gather_into_tensor": lambda output_tensor, *_, **rest: output_tensor.nbytes,
    "all_gather_coalesced": lambda output_tensors, *_, **rest: sum(one.nbytes for one in output_tensors),
    "reduce_scatter_tensor": lambda output_tensor, input_tensor, *_, **rest: input_tensor.nbytes,
}
"""Bytes that the ring of a collective moves, times n / (n - 1)."""
SMALL = {"reduce_bucket_size": 20_000, "use_multi_rank_bucket_allreduce": False}
"""Buckets of a tenth of the parameters, so that each kind of tensor weighs in the sum."""


def config(stage: int, precision: str, **settings: Any) -> Config:
    made = config_of(stage, precision, **settings)
    model = dataclasses.replace(
        made.decoder("this test"), num_layers=4, dim=64, num_heads=4, num_kv_heads=2, hidden_dim=192
    )
    return dataclasses.replace(made, model=model)


@contextmanager
def small_buckets() -> Iterator[None]:
    def changed(*arguments: Any, **options: Any) -> dict[str, Any]:
        made = deepspeed_config(*arguments, **options)
        made["zero_optimization"] |= SMALL
        return made

    with pytest.MonkeyPatch.context() as patch:
        for user in ("engine.deepspeed", "engine.module", "preflight.stages"):
            patch.setattr(f"fmscale.train.{user}.deepspeed_config", changed)
        patch.setattr("fmscale.train.engine.deepspeed_config.ALWAYS_WHOLE", 100)
        yield


def tensor_bytes(activations: set[int]) -> int:
    """Bytes of the distinct storages of all tensors since `gc.freeze`, with gradients that only C++ holds, and without
    the activations at these addresses.
    """
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            gradient = thing.grad if thing.is_leaf else None
            for tensor in (thing,) if gradient is None else (thing, gradient):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for address, size in storages.items() if address not in activations)


def counted(rank: int, size: int, cases: list[Config]) -> list[tuple[int, float]]:
    """(most bytes of tensors, bytes sent) of a step, for an engine of each config."""
    return [_counted(rank, size, case) for case in cases]


def _counted(rank: int, size: int, config: Config) -> tuple[int, float]:
    gc.collect()
    gc.freeze()
    most, sent, activations = [0], [0.0], set[int]()

    def look(*_: Any) -> None:
        most[0] = max(most[0], tensor_bytes(activations))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        weights = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
        activations.update({tensor.untyped_storage().data_ptr()} - weights)
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        activations.discard(tensor.untyped_storage().data_ptr())
        return tensor

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            look()
            sent[0] += SENT[name](*arguments, **options) * (size - 1) / size
            return real(self, *arguments, **options)

        return call

    try:
        with small_buckets(), pytest.MonkeyPatch.context() as patch:
            engine = make_engine(config, rank, size, ACCUMULATION)
            train(engine, rank, size, range(1), ACCUMULATION)
            from deepspeed.comm.torch import TorchBackend

            for name in SENT:
                patch.setattr(TorchBackend, name, watched(name, getattr(TorchBackend, name)))
            engine._base.register_step_pre_hook(look)
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                train(engine, rank, size, range(1, 2), ACCUMULATION)
    finally:
        gc.unfreeze()
    return most[0], sent[0]


def planned(config: Config, size: int) -> StageNeeds:
    model = config.decoder("this test")
    run = RunSize(
        trained=num_parameters(model, VOCAB),
        largest=model.dim * model.ffn_width,
        world=size,
        local_size=size,
        accumulation=ACCUMULATION,
    )
    with small_buckets():
        return all_stages(config, run, None, on_gpu=False)[config.train.zero_stage]


def check(cases: list[Config], timeout: float = 120.0) -> None:
    ranks = run_ranks(counted, 2, cases, timeout=timeout)
    for number, case in enumerate(cases):
        needs, name = planned(case, 2), f"stage {case.train.zero_stage} in {case.train.precision}"
        memory, sent = (max(values) for values in zip(*(rank[number] for rank in ranks), strict=True))
        assert needs.device + needs.host == pytest.approx(memory, rel=0.05), name
        assert needs.wire == pytest.approx(sent, rel=0.05), name


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_rank_holds_and_sends_what_the_plan_says(precision: str) -> None:
    check([config(stage, precision) for stage in range(4)])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its CPU Adam with g++")
def test_a_rank_with_offload_holds_and_sends_what_the_plan_says() -> None:
    """The first use compiles DeepSpeed's extension: about two minutes, once a machine."""
    check([config(stage, kind, offload_optimizer=True) for kind in ("bf16", "fp32") for stage in (1, 2, 3)], 500.0)


GPU = {**DEFAULTS, "reduce_bucket_size": 50_000_000, "overlap_comm": True, "use_multi_rank_bucket_allreduce": False}
LLAMA = RunSize(trained=70_000_000_000, largest=10**9, world=512, local_size=8, accumulation=4)


def needs_of(stage: int, size: RunSize = LLAMA, **settings: Any) -> StageNeeds:
    offload: dict[str, Any] = {"offload_optimizer": {}} if settings.pop("offload", False) else {}
    return stage_needs(
        size,
        TrainConfig(**{"precision": "bf16", **settings.pop("train", {})}),
        {**GPU, "stage": stage, **offload, **settings},
    )


def test_traffic_of_a_step_follows_the_stage_and_the_accumulation() -> None:
    """Bytes a parameter, but for the n-th that a rank of n does not send."""
    P, ring = LLAMA.trained, 511 / 512
    found = [needs_of(stage).wire / P / ring for stage in range(4)]
    kept = 2 * 5e8 / P  # weights that are used again soon
    assert found == pytest.approx([8, 8 + 2, 4 * 4 + 2, 4 * (2 + 2 - kept + 4)], rel=1e-6)
    every = needs_of(2, use_multi_rank_bucket_allreduce=True)
    assert every.wire / P / ring == pytest.approx(4 * 8 + 2)
    assert needs_of(2, train={"reduce_precision": "bf16"}).wire / P / ring == pytest.approx(4 * 2 + 2)
    assert needs_of(2).between == needs_of(2).wire
    assert needs_of(2, dataclasses.replace(LLAMA, world=8)).between == 0


def test_hierarchical_partitions_keep_all_gathers_but_the_first_inside_a_node() -> None:
    plain, inner = needs_of(3), needs_of(3, zero_hpz_partition_size=8)
    P, ring, kept = LLAMA.trained, 511 / 512, 1e9
    assert inner.between == pytest.approx(ring * (2 * P + 4 * 4 * P))
    assert inner.wire - inner.between == pytest.approx(7 / 8 * (3 * 2 * P + 4 * (2 * P - kept)))
    assert inner.parameters - plain.parameters == 2 * P / 8
    assert inner.between < plain.between


def test_memory_by_hand() -> None:
    """1 M parameters on 4 ranks, without a parameter larger than a bucket of 1,000 elements."""
    size, small = RunSize(trained=1_000_000, world=4), {"reduce_bucket_size": 1000, "overlap_comm": False}
    found = [needs_of(stage, size, **small) for stage in range(4)]
    # 2 for bf16 weights, 4 masters, 8 moments, 4 gradients, at stage 1 also 2 for bf16 gradients; a part is a quarter.
    states = [one.device - one.buckets for one in found]
    assert states == [18_000_000, 11_000_000, 6_000_000, 4_500_000 + 2_000_000]
    # whole copies at stages 0 and 1; a bucket, and copies of it
    assert [one.buckets for one in found[:3]] == [2_000_000, 4_000_000, 8_000]
    offloaded = needs_of(2, size, offload=True, **small)
    assert (offloaded.device - offloaded.buckets, offloaded.host) == (3_000_000, 12 * 250_000 + 6 * 250_000)
