"""Where torchrun's agents meet: `torchrun --rdzv-backend fmscale`, and what `fmscale launch` gives it.

A store that listens on loopback where there is one node, else at the address of --rdzv-endpoint, on the node with
--rdzv-conf rank=0. There is no state in it that anybody unpickles, as there is in torch's own (c10d), which
`--standalone` takes; torch's static rendezvous has none either, but listens on all interfaces.
"""

from collections.abc import Callable

from fmscale.launch.ports import DEFAULT_PORT
from fmscale.launch.torchrun import BACKEND
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from fmscale.errors import ConfigError
from fmscale.runtime.tcp_store import LOOPBACK, serve_store, warn_of_loopback


class Meeting(StaticTCPRendezvous):
    """torch's static rendezvous, with a store that listens at one address."""

    def get_backend(self) -> str:
        """The name of the backend."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """All agents, numbered as they were told; the same again after a restart."""
        if self.rank == 0 and self._store is None:
            seconds = self.timeout.total_seconds()
            self._store = serve_store(self.master_addr, self.master_port, seconds, clients=self.world_size)
            self.master_port = self._store.port
        return super().next_rendezvous()


def meeting(parameters: RendezvousParameters) -> RendezvousHandler:
    """The rendezvous of one agent. Raises ConfigError for several nodes that are not all told who they are."""
    nodes, timeout = parameters.max_nodes, int(parameters.get("timeout", 600))
    host, port = parse_rendezvous_endpoint(parameters.endpoint, DEFAULT_PORT if nodes > 1 else 0)
    if nodes == 1:
        return Meeting(LOOPBACK, port, 0, 1, parameters.run_id, timeout)
    rank = str(parameters.get("rank"))
    if parameters.min_nodes != nodes or not rank.isdecimal() or int(rank) >= nodes or not parameters.endpoint:
        raise ConfigError(
            f"The rendezvous {BACKEND} needs the number of nodes, the number of this one, and where the first is",
            found={
                "--nnodes": f"{parameters.min_nodes}:{nodes}",
                "--rdzv-conf": f"rank={rank}",
                "--rdzv-endpoint": parameters.endpoint,
            },
            remedy="Give --nnodes 2 --rdzv-endpoint node-1:29500 --rdzv-conf rank=0, on the second node rank=1.",
        )
    if rank == "0":
        warn_of_loopback(host)
    return Meeting(host, port, int(rank), nodes, parameters.run_id, timeout)


def handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What torchrun looks for under an entry point of its group torchrun.handlers."""
    return meeting
