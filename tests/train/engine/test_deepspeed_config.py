"""DeepSpeed's settings from the model's size, and the ranks that hpZ may have."""

import dataclasses

import pytest
import torch

from fmscale.config import BatchShape, LaunchConfig, ModelConfig, OptimizerConfig, TrainConfig
from fmscale.config.checks import InvalidField
from fmscale.errors import ConfigError
from fmscale.models import build
from fmscale.runtime.world import World
from fmscale.train.engine.deepspeed_config import check_hpz, deepspeed_config, sizes_of
from fmscale.train.preflight.preflight import check_run
from tests.train.engines import config_of

BATCH = BatchShape(global_batch=8, micro_batch=1, accumulation=1, dp_size=8)
HPZ = config_of(3, "bf16", zero_hpz_partition_size=4)


def test_stage_3_fetches_a_block_ahead_and_holds_a_head_and_two_blocks() -> None:
    """The widths of a Llama of 70 B, in two layers."""
    with torch.device("meta"):
        llama = ModelConfig(num_layers=2, dim=8192, num_heads=64, num_kv_heads=8, hidden_dim=28672)
        model = build(llama, vocab_size=128_256)
    settings = deepspeed_config(TrainConfig(zero_stage=3), OptimizerConfig(), BATCH, "cuda:0", sizes_of(model))
    zero = settings["zero_optimization"]
    block, head = 855_654_400, 128_256 * 8192
    assert zero["stage3_prefetch_bucket_size"] == block
    assert zero["stage3_max_live_parameters"] == head + 2 * block
    assert zero["reduce_bucket_size"] == 8192**2
    with torch.device("meta"):
        small = build(dataclasses.replace(llama, dim=64, hidden_dim=128, num_heads=4, num_kv_heads=1), vocab_size=100)
    settings = deepspeed_config(TrainConfig(zero_stage=3), OptimizerConfig(), BATCH, "cuda:0", sizes_of(small))
    zero = settings["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == zero["reduce_bucket_size"] == 50_000_000
    assert zero["stage3_max_live_parameters"] == 10**9


def test_hpz_is_for_stage_3() -> None:
    with pytest.raises(InvalidField, match=r"zero_hpz_partition_size needs partitioned parameters.*zero_stage 2"):
        config_of(2, "bf16", zero_hpz_partition_size=4)


def test_plan_refuses_hpz_over_ranks_that_it_does_not_divide() -> None:
    def problems(ranks: int, *, procs_per_node: int | None = None) -> list[str]:
        config = dataclasses.replace(HPZ, launch=LaunchConfig(procs_per_node=procs_per_node))
        return [str(problem) for problem in check_run(config, ranks).problems if "hpz" in str(problem)]

    assert problems(16) == problems(16, procs_per_node=8) == []
    [problem] = problems(6)
    assert "zero_hpz_partition_size must divide the ranks of each node" in problem
    assert "4, 6 ranks" in problem
    assert "Take the number of GPUs of a node, or 1" in problem
    assert "16 ranks, 2 on this node" in problems(16, procs_per_node=2)[0]


def test_a_start_refuses_hpz_across_nodes() -> None:
    """Ranks that fill nodes in order; ranks that srun spreads over the nodes in turn."""
    for rank in range(16):
        check_hpz(HPZ, 16, World(rank=rank, world_size=16, local_rank=rank % 8, local_size=8))
    in_turn = [World(rank=rank, world_size=16, local_rank=rank // 2, local_size=8) for rank in range(16)]
    refused = []
    for world in in_turn:
        try:
            check_hpz(HPZ, 16, world)
        except ConfigError as error:
            refused.append(error)
    assert "local rank 0 of rank 1" in str(refused[0].found)
    assert "--distribution=block" in refused[0].remedy
    with pytest.raises(ConfigError, match="2 on this node"):
        check_hpz(HPZ, 16, World(rank=0, world_size=16, local_rank=0, local_size=2))
