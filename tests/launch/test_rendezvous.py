"""torchrun finds the rendezvous of fmscale, which listens at one address and refuses nodes without a number."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from fmscale.errors import ConfigError
from tests.helpers.listeners import listeners
from tests.helpers.s3_server import free_ports


def parameters(endpoint: str, nodes: int, least: int | None = None, **more: Any) -> RendezvousParameters:
    return RendezvousParameters("fmscale", endpoint, "id", least or nodes, nodes, timeout=30, **more)


def test_on_one_node_it_is_on_loopback_and_the_same_after_a_restart() -> None:
    handler = get_rendezvous_handler(parameters("192.0.2.1:0", 1))
    infos = [handler.next_rendezvous() for _ in range(2)]
    stores = [info.bootstrap_store_info for info in infos]
    places = {(store.master_addr, store.master_port) for store in stores if store is not None}
    assert len(places) == 1
    host, port = places.pop()
    assert host == "127.0.0.1"
    assert (host, port) in listeners(os.getpid())
    infos[0].store.set("role", "a")
    assert infos[1].store.get("role") == b"a"
    assert [(info.rank, info.world_size) for info in infos] == [(0, 1)] * 2


def test_on_several_nodes_it_is_where_the_endpoint_is(caplog: pytest.LogCaptureFixture) -> None:
    port = free_ports(1)[0]

    def serve() -> Any:
        return get_rendezvous_handler(parameters(f"127.0.0.3:{port}", 2, rank="0")).next_rendezvous()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(serve)
        second = get_rendezvous_handler(parameters(f"127.0.0.3:{port}", 2, rank="1")).next_rendezvous()
        assert (first.result().rank, second.rank) == (0, 1)
    assert [place for place in listeners(os.getpid()) if place[1] == port] == [("127.0.0.3", port)]
    assert "127.0.0.3 is 127.0.0.3 on rank 0's node, which no other node reaches" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "least", "more"),
    [
        ("node-1:29500", 2, {}),
        ("node-1:29500", 2, {"rank": "2"}),
        ("node-1:29500", 1, {}),
        ("", 2, {"rank": "0"}),
    ],
)
def test_nodes_that_it_cannot_number_are_refused(endpoint: str, least: int, more: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="needs the number of nodes") as caught:
        get_rendezvous_handler(parameters(endpoint, 2, least, **more))
    assert "--rdzv-conf rank=0" in caught.value.remedy
