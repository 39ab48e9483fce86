"""Masters and moments in host memory, updated by DeepSpeed's CPU Adam: the same training."""

import shutil
from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, held, joined, make_engine, train


def offloaded(rank: int, size: int, stage: int, precision: str, offload: bool) -> Any:
    """Losses and norms, pieces, and the threads of the updates."""
    config = config_of(stage, precision, offload_optimizer=offload)
    engine = make_engine(config, rank, size, accumulation=3, cores=3)
    step, threads = engine._base.step, set()

    def counted(*args: Any, **options: Any) -> Any:
        threads.add(torch.get_num_threads())
        return step(*args, **options)

    engine._base.step = counted
    found = train(engine, rank, size, range(3), accumulation=3)
    assert torch.get_num_threads() == 1
    return found, held(engine, save=True), threads


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its CPU Adam with g++")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_trains_the_same(stage: int) -> None:
    """The first use compiles DeepSpeed's extension: about two minutes, once a machine."""
    plain = run_ranks(offloaded, 2, stage, "fp32", False, timeout=120)
    other = run_ranks(offloaded, 2, stage, "fp32", True, timeout=500)
    torch.testing.assert_close(torch.tensor(other[0][0]), torch.tensor(plain[0][0]), rtol=1e-4, atol=1e-5)
    assert [rank[2] for rank in plain] == [{1}, {1}]
    assert [rank[2] for rank in other] == [{3}, {3}]
    want, got = joined([rank[1] for rank in plain]), joined([rank[1] for rank in other])
    assert want.keys() == got.keys()
    for key, values in want.items():
        torch.testing.assert_close(got[key], values, rtol=2e-3, atol=2e-5)
