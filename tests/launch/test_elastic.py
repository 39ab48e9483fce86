"""Agents of nodes that come and go meet in rounds: enough nodes begin one, a node that comes or is lost ends it."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed.elastic.rendezvous.registry as registry  # first: it loads our entry point
from fmscale.launch import elastic
from fmscale.launch.elastic import ElasticMeeting
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

from fmscale.runtime.world import ROUND, read_world
from tests.helpers.listeners import listeners
from tests.helpers.s3_server import free_ports

HOST = "127.0.0.3"


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ElasticMeeting]]:
    """Agents of three nodes, of which two are enough."""
    monkeypatch.setattr(elastic, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(elastic, "LOST_SECONDS", 2.0)
    monkeypatch.setattr(elastic, "LAST_CALL_SECONDS", 0.2)
    monkeypatch.setenv(ROUND, "")
    endpoint = f"{HOST}:{free_ports(1)[0]}"
    made = [
        registry.get_rendezvous_handler(
            RendezvousParameters("fmscale", endpoint, "id", 2, 3, timeout=60, rank=str(node))
        )
        for node in range(3)
    ]
    yield made  # type: ignore[misc]
    for agent in reversed(made):
        agent.shutdown()


def meet(*agents: ElasticMeeting) -> list[tuple[int, int]]:
    """Rank and size of each in the next round."""
    with ThreadPoolExecutor(len(agents)) as pool:
        infos = list(pool.map(lambda agent: agent.next_rendezvous(), agents))
    for info in infos:
        info.store.set(f"from {info.rank}", "here")
    assert all(info.store.get(f"from {other.rank}") == b"here" for info in infos for other in infos)
    return [(info.rank, info.world_size) for info in infos]


def await_over(*agents: ElasticMeeting) -> None:
    deadline = time.monotonic() + 60
    while not all(agent.num_nodes_waiting() for agent in agents):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_node_that_comes_and_a_node_that_is_lost_begin_another_round(agents: list[ElasticMeeting]) -> None:
    first, second, third = agents
    assert meet(first, second) == [(0, 2), (1, 2)]
    assert [agent.num_nodes_waiting() for agent in (first, second)] == [0, 0]
    with ThreadPoolExecutor() as pool:
        late = pool.submit(third.next_rendezvous)
        await_over(first, second)
        assert meet(first, second) == [(0, 3), (1, 3)]
        assert (late.result().rank, os.environ[ROUND]) == (2, "1")
    second._closed.set()  # its beats end, as with its host
    await_over(first, third)
    assert meet(first, third) == [(0, 2), (1, 2)]
    assert [place[0] for place in listeners(os.getpid()) if place[1] == first._port] == [HOST]


def test_too_few_nodes_and_a_run_that_has_ended_are_told(agents: list[ElasticMeeting]) -> None:
    first, second, _ = agents
    first._timeout = 0.5
    with pytest.raises(RendezvousTimeoutError, match="fewer than 2 nodes came"):
        first.next_rendezvous()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(second.next_rendezvous)
        first.shutdown()
        with pytest.raises(RendezvousClosedError):
            waits.result()


def test_ranks_of_a_round_meet_whatever_their_agents_have_restarted() -> None:
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "id"}
    given |= {"MASTER_ADDR": "host", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "5"}
    assert (read_world(given).attempt, read_world(given).elastic) == (5, False)
    world = read_world({**given, ROUND: "2"})
    assert (world.attempt, world.elastic) == (2, True)
