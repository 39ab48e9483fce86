"""The meeting of torchrun's agents by `--rdzv-backend fmscale`, which `fmscale launch` gives to torchrun.

On one node the store listens on loopback; on several nodes it listens at the address of --rdzv-endpoint, on the node
with --rdzv-conf rank=0. If their number may change, `elastic.py` has the meeting. No process unpickles the store's
values. torch's own rendezvous (c10d, taken by `--standalone`) unpickles its state, and torch's static rendezvous
listens on all interfaces.
"""

from collections.abc import Callable

from fmscale.launch.elastic import ElasticMeeting
from fmscale.launch.launch import DEFAULT_PORT
from fmscale.launch.torchrun import BACKEND
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from fmscale.errors import ConfigError
from fmscale.runtime.tcp_store import LOOPBACK, await_name, serve_store, warn_of_loopback


class Meeting(StaticTCPRendezvous):
    """Torch's static rendezvous with a store that listens at one address."""

    def get_backend(self) -> str:
        """Name of the backend."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other agents, each under the number of its node; a restart keeps the numbers."""
        if self.rank == 0 and self._store is None:
            seconds = self.timeout.total_seconds()
            self._store = serve_store(self.master_addr, self.master_port, seconds, clients=self.world_size)
            self.master_port = self._store.port
        return super().next_rendezvous()


def meeting(parameters: RendezvousParameters) -> RendezvousHandler:
    """The rendezvous of one agent. Raises ConfigError for several nodes without number or address."""
    nodes, timeout = parameters.max_nodes, int(parameters.get("timeout", 600))
    host, port = parse_rendezvous_endpoint(parameters.endpoint, DEFAULT_PORT if nodes > 1 else 0)
    rank, least = str(parameters.get("rank")), parameters.min_nodes
    if nodes == 1:
        return Meeting(LOOPBACK, port, 0, 1, parameters.run_id, timeout)
    if not rank.isdecimal() or int(rank) >= nodes or not parameters.endpoint:
        raise ConfigError(
            f"The rendezvous {BACKEND} needs the number of nodes, this node's number, and the address of the first",
            found={
                "--nnodes": f"{parameters.min_nodes}:{nodes}",
                "--rdzv-conf": f"rank={rank}",
                "--rdzv-endpoint": parameters.endpoint,
            },
            remedy="Give --nnodes 2 --rdzv-endpoint node-1:29500 --rdzv-conf rank=0, on the second node rank=1.",
        )
    if rank == "0":
        warn_of_loopback(host)
    else:
        await_name(host)
    if least < nodes:
        return ElasticMeeting(host, port, int(rank), least, nodes, parameters.run_id, timeout)
    return Meeting(host, port, int(rank), nodes, parameters.run_id, timeout)


def handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Function behind the entry point of the group torchrun.handlers."""
    return meeting
