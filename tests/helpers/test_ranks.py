"""The rank pool itself: results, reuse, failures, deaths and hangs."""

import os
import signal
import time

import pytest
import torch
from torch import distributed

from fmscale.errors import ConfigError
from tests.helpers.ranks import RankDied, RankTimeout, run_ranks


def add(rank: int, size: int, offset: int) -> tuple[float, int, str, int]:
    value = torch.tensor(float(rank + offset))
    distributed.all_reduce(value)
    return value.item(), os.getpid(), os.environ["SLURM_PROCID"], torch.get_num_threads()


def fail_on_one(rank: int, size: int) -> None:
    if rank == 1:
        raise ConfigError("No such thing", found="x", remedy="Take y.")
    distributed.barrier()


def die_on_one(rank: int, size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def hang_on_zero(rank: int, size: int) -> None:
    if rank == 0:
        time.sleep(1000)


def unpicklable(rank: int, size: int) -> None:
    class Local(Exception):
        pass

    raise Local("kept")


def test_ranks_compute_together_and_are_reused_for_any_size() -> None:
    first = run_ranks(add, 3, 10)
    assert [(total, rank, threads) for total, _, rank, threads in first] == [(33.0, str(r), 1) for r in range(3)]
    assert [total for total, *_ in run_ranks(add, 2, 0)] == [1.0, 1.0]
    again = run_ranks(add, 3, 10)
    assert [pid for _, pid, *_ in again] == [pid for _, pid, *_ in first]


def test_the_failing_rank_is_raised_with_its_traceback_and_the_pool_survives() -> None:
    with pytest.raises(ConfigError) as caught:
        run_ranks(fail_on_one, 2)
    assert (caught.value.cause, caught.value.remedy) == ("No such thing", "Take y.")
    assert "raised on rank 1" in caught.value.__notes__[0]
    assert "in fail_on_one" in caught.value.__notes__[0]
    assert run_ranks(add, 2, 1)[0][0] == 3.0
    with pytest.raises(RuntimeError, match="Local: kept"):
        run_ranks(unpicklable, 2)


def test_a_killed_rank_is_named_and_replaced() -> None:
    with pytest.raises(RankDied) as caught:
        run_ranks(die_on_one, 2)
    assert (caught.value.rank, caught.value.status) == (1, -signal.SIGKILL)
    assert run_ranks(add, 2, 1)[0][0] == 3.0


def test_a_hang_ends_with_the_stack_of_the_rank_that_hangs() -> None:
    with pytest.raises(RankTimeout, match=r"ranks \[0\] of 2(.|\n)*in hang_on_zero"):
        run_ranks(hang_on_zero, 2, timeout=1.0)
