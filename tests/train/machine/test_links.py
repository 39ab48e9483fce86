"""Links between ranks: measured over real gloo ranks, slow links named, nodes that do not answer named."""

import os
import socket
import threading
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]

from fmscale.runtime import variables
from fmscale.runtime.group import connect, init_distributed
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World, read_world
from fmscale.train.machine.examine import examine_nodes, judge_clocks
from fmscale.train.machine.links import Link, dial, judge_links, measure_ring, unreached
from tests.helpers.ranks import run_ranks


def ring(rank: int, size: int) -> list[Link]:
    world = read_world(os.environ)
    store = connect(world, deadline=20)
    init_distributed(world, store, device="cpu", deadline=20)
    return measure_ring(world, HostWaits(store, world), "cpu")


def test_every_rank_learns_every_link_of_the_ring() -> None:
    first, *others = run_ranks(ring, 3)
    assert [(link.source, link.target, link.kind) for link in first] == [(0, 1, "node"), (1, 2, "node"), (2, 0, "node")]
    assert all(1 < link.microseconds < 1e6 and 1 < link.megabytes_per_second < 1e6 for link in first)
    assert others == [first, first]


def examined(rank: int, size: int) -> list[Any]:
    findings = examine_nodes(read_world(os.environ), deadline=20)
    variables.take_back()
    return [(one.name, one.status) for one in findings]


def test_the_examination_of_all_ranks_is_one() -> None:
    first, second = run_ranks(examined, 2)
    assert first == second
    assert [name for name, _ in first].count("torch") == 1
    assert ("links, node", "ok") in first


def link(source: int, target: int, microseconds: float, rate: float, kind: str = "network") -> Link:
    return Link(source, target, kind, microseconds, rate)


def test_a_link_is_slow_beside_links_of_its_kind() -> None:
    names = ["a", "a", "b", "c"]
    alike = [link(1, 2, 20, 10_000), link(2, 3, 22, 9000), link(3, 0, 21, 9500)]
    inside = link(0, 1, 2, 100_000, "node")
    assert [one.status for one in judge_links([inside, *alike], names)] == ["ok", "ok"]
    slow = judge_links([inside, alike[0], alike[1], link(3, 0, 21, 900)], names)
    assert [one.status for one in slow] == ["ok", "warn", "ok"]
    assert "rank 3 on c to rank 0 on a: 21 us, 900 MB/s" in slow[1].found
    late = judge_links([alike[0], alike[1], link(3, 0, 500, 9500)], names)
    assert [one.status for one in late] == ["ok", "warn"]


def test_a_node_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = [
            ("127.0.0.1", there.getsockname()[1]),
            (),
            ("127.0.0.1", closed.getsockname()[1]),
            ("nowhere.invalid", 1),
        ]
        refused, unknown = dial(1, places)
    assert refused == (1, 2, "127.0.0.1: Connection refused")
    assert unknown[:2] == (1, 3)


def test_all_nodes_dial_all_nodes() -> None:
    store = HashStore()
    found: dict[int, list[tuple[int, int, str]]] = {}

    def node(rank: int) -> None:
        world = World(rank=rank, world_size=3, local_rank=0, local_size=1, node=rank)
        found[rank] = unreached(world, HostWaits(store, world), "127.0.0.1")

    threads = [threading.Thread(target=node, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {0: [], 1: [], 2: []}


def test_clocks_that_differ_are_named() -> None:
    assert judge_clocks([100.0, 100.5], ["a", "b"]) == []
    (found,) = judge_clocks([100.0, 160.0], ["a", "b"])
    assert found.found == "b is 60.0 s ahead of a"
