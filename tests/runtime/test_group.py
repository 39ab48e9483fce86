"""The meeting of a run's ranks: the store that they reach, its address, and torch's groups over it."""

import gc
import os
import resource
import socket
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from fmscale.errors import ConfigError, RankError
from fmscale.runtime import group, tcp_store
from fmscale.runtime.group import allow_open_files, connect, init_distributed
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World, read_world
from tests.helpers.listeners import listeners
from tests.helpers.ranks import run_ranks
from tests.helpers.s3_server import free_ports


def add_up(rank: int, size: int) -> float:
    world = read_world(os.environ)
    distributed.destroy_process_group()
    init_distributed(world, connect(world), device="cpu")
    value = torch.tensor(float(rank))
    distributed.all_reduce(value)
    return value.item()


def test_torch_distributed_over_the_same_store() -> None:
    assert run_ranks(add_up, 2) == [1.0, 1.0]


def sockets(rank: int, size: int) -> list[int]:
    """New TCP connections of this rank: with a group and a clone of it, and after a sum."""
    world = read_world(os.environ)
    distributed.destroy_process_group()
    store = connect(world)
    gc.collect()

    def now() -> set[Any]:
        found = psutil.Process().net_connections("tcp")
        return {(one.laddr, one.raddr) for one in found if one.status == "ESTABLISHED"}

    before = now()
    init_distributed(world, store, device="cpu")
    distributed.new_group(list(range(size)))
    grouped = now()
    HostWaits(store, world).barrier("counted")
    distributed.all_reduce(torch.ones(()))
    return [len(grouped - before), len(now() - before)]


def test_ranks_open_a_socket_to_another_when_they_first_talk() -> None:
    assert run_ranks(sockets, 2) == [[0, 1], [0, 1]]


def test_a_process_may_open_all_the_files_that_its_system_allows() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, limits[1]), limits[1]))
    try:
        assert allow_open_files() == limits[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_rank_that_looks_for_rank_zero_heeds_a_stop_and_says_what_it_does(
    told: StopFlag, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(group, "STOP_SECONDS", 0.1)
    port = free_ports(1)[0]
    world = World(rank=1, world_size=2, master=("127.0.0.1", port))
    with pytest.raises(RankError, match=r"did not reach rank 0 within \d+ s, .*told to stop \(SIGTERM\)"):
        connect(world, stop=told)
    assert caplog.records[0].getMessage().endswith(f" s for rank 0 at 127.0.0.1:{port}: Connection refused")


def test_a_port_in_use_and_a_rank_zero_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="Rank 0 cannot open the port") as caught:
            connect(World(world_size=2, master=("127.0.0.1", port)), deadline=1)
        assert caught.value.found == f"127.0.0.1:{port}"
        assert "MASTER_PORT" in caught.value.remedy
    with pytest.raises(RankError, match=r"rank 1 on .* did not reach rank 0 within 0 s"):
        connect(World(rank=1, world_size=2, master=("127.0.0.1", port)), deadline=0.1)


def test_a_rank_whose_node_does_not_know_rank_zeros_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_store, "NAME_SECONDS", 0.0)
    words = f"no-such-host.invalid, the node where all meet, does not resolve on {socket.gethostname()}"
    with pytest.raises(ConfigError, match=words):
        connect(World(rank=1, world_size=2, master=("no-such-host.invalid", 1)), deadline=5)


def test_ranks_of_one_node_meet_on_loopback_whatever_the_address_that_they_are_given() -> None:
    port = free_ports(1)[0]
    place: dict[str, Any] = {"world_size": 2, "local_size": 2, "master": ("no-such-host.invalid", port)}
    first, second = (connect(World(rank=rank, **place), deadline=5) for rank in range(2))
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert [place for place in listeners(os.getpid()) if place[1] == port] == [("127.0.0.1", port)]


def test_a_process_alone_listens_nowhere() -> None:
    before = set(listeners(os.getpid()))
    store = connect(World())
    store.set("key", "value")
    assert set(listeners(os.getpid())) == before
