"""The device of a rank, for every number of GPUs that it may see."""

import socket
from collections.abc import Callable

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.runtime.device import check_places, device_place, pick_device
from fmscale.runtime.world import World

SECOND_OF_TWO = World(rank=1, world_size=2, local_rank=1, local_size=2)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (0, "auto", "cpu"),
        (1, "auto", "cuda:0"),
        (2, "auto", "cuda:1"),
        (4, "cuda", "cuda:1"),
        (4, "cpu", "cpu"),
    ],
)
def test_pick(gpus: Callable[[int], None], count: int, wanted: str, expected: str) -> None:
    gpus(count)
    assert pick_device(SECOND_OF_TWO, wanted) == expected


def test_refusals(gpus: Callable[[int], None]) -> None:
    gpus(0)
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device(World(), "cuda")
    with pytest.raises(ConfigError, match="auto, cuda or cpu"):
        pick_device(World(), "gpu")
    gpus(2)
    with pytest.raises(ConfigError, match="3 ranks on a node with 2 GPUs") as caught:
        pick_device(World(rank=2, world_size=3, local_rank=2, local_size=3))
    assert "at most 2 ranks" in caught.value.remedy


def test_ranks_that_share_a_gpu_are_refused_by_name() -> None:
    check_places([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-3")])
    check_places([("a", ""), ("a", "")])
    with pytest.raises(ConfigError, match="ranks 1, 3 have the same GPU") as caught:
        check_places([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-3"), ("a", "GPU-2")])
    assert caught.value.found == "GPU GPU-2 on a"
    assert "as many ranks on a node as it has GPUs" in caught.value.remedy


def test_ranks_on_gpus_beside_a_rank_without_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank 1 would compute on the CPU") as caught:
        check_places([("a", "GPU-1"), device_place("cpu")])
    assert caught.value.found == f"no GPU on {socket.gethostname()}"
