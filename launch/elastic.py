"""The meeting of torchrun's agents whose number may change between a least and a most, by `fmscale launch --nodes 2:4`.

Agents register in a store on node 0, which decides who is in: all nodes that wait, once they are the most, or the least
and some seconds have passed. A node that tells nothing, and one that comes or comes back, makes all agents end their
ranks and meet again. The protocol is that of torch's DynamicRendezvousHandler, without its pickles: values are JSON.
The run ends with node 0, which serves the store.
"""

import json
import logging
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistNetworkError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from fmscale.runtime.tcp_store import serve_store
from fmscale.runtime.world import ROUND

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
LOST_SECONDS = 5.0
"""Silence of an agent after which its node is lost: sooner than its ranks are missed, so that they start again."""
LAST_CALL_SECONDS = 5.0
"""Time for more nodes to come once the least are there. A node that comes later costs all ranks a restart."""
PAUSE = 0.1


class ElasticMeeting(RendezvousHandler):
    """The meeting as one agent sees it."""

    def __init__(self, host: str, port: int, node: int, least: int, most: int, run_id: str, timeout: float) -> None:
        """`node`: number of this node, 0 to most - 1. `timeout`: seconds of a wait for the least number of nodes."""
        self._host, self._port, self._node, self._run_id = host, port, node, run_id
        self._least, self._most, self._timeout = least, most, timeout
        self._store: Store | None = None
        self._round, self._members = -1, list[int]()
        self._over, self._closed = -1, threading.Event()
        """Last round that is known to be over, and the event that ends the beats."""
        self._answered = self._enough = 0.0
        """Time of the last answer to a beat, and that since which the least number of nodes waits; 0 before."""
        self._beats: dict[int, tuple[str, float]] = {}
        """Last beat of each node, and the time at which node 0 saw it first."""

    def get_backend(self) -> str:
        """Name of the backend."""
        return "fmscale"

    @property
    def use_agent_store(self) -> bool:
        """True: ranks connect to the agents' store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the next round with this node in it. Raises torch's RendezvousError."""
        try:
            store = self._store or self._connect()
            began = time.monotonic()
            store.set(f"joins/{self._node}", str(self._round))
            while True:
                if store.check(["closed"]):
                    raise RendezvousClosedError("another node has ended the run")
                if self._node == 0:
                    self._gather(store)
                number, members = json.loads(store.get("round")) if store.check(["round"]) else (-1, [])
                if number > self._round and self._node in members:
                    break
                if time.monotonic() - began > self._timeout:
                    raise RendezvousTimeoutError(f"fewer than {self._least} nodes came within {self._timeout:.0f} s")
                if time.monotonic() - self._answered > 2 * LOST_SECONDS:
                    raise RendezvousConnectionError(f"node 0 at {self._host}:{self._port} gives no answer")
                time.sleep(PAUSE)
        except DistNetworkError as error:
            raise RendezvousConnectionError(f"node 0 at {self._host}:{self._port} is gone or not reached") from error
        self._round, self._members = number, members
        # Agents count restarts for themselves; ranks of one round must find one another.
        os.environ[ROUND] = str(number)
        logger.warning("round %d: nodes %s of up to %d", number, members, self._most)
        inside, place = PrefixStore(f"{self._run_id}/{number}", store), RendezvousStoreInfo(self._host, self._port)
        return RendezvousInfo(inside, members.index(self._node), len(members), place)

    def num_nodes_waiting(self) -> int:
        """1 if the round is over, because a node came or is lost; else 0."""
        return int(self._over == self._round)

    def is_closed(self) -> bool:
        """True once this agent has ended."""
        return self._closed.is_set()

    def set_closed(self) -> None:
        """End the run on all nodes."""
        self.shutdown()

    def get_run_id(self) -> str:
        """Name of the run for torchrun."""
        return self._run_id

    def shutdown(self) -> bool:
        """Tell the others that no round follows."""
        if not self._closed.is_set() and self._store is not None and time.monotonic() - self._answered < LOST_SECONDS:
            with suppress(DistNetworkError):
                self._store.set("closed", "")
        self._closed.set()
        return True

    def _connect(self) -> Store:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if self._node == 0:
            self._store = serve_store(self._host, self._port, self._timeout)
        else:
            wait = timedelta(seconds=self._timeout)
            self._store = TCPStore(self._host, self._port, is_master=False, timeout=wait)
        self._answered = time.monotonic()
        own = self._store.clone()  # type: ignore[attr-defined]
        threading.Thread(target=self._beat, args=(own,), name="beats", daemon=True).start()
        return self._store

    def _beat(self, store: Store) -> None:
        """Tell that this node lives, and hear of the end of a round; on node 0 also decide it. An own connection, as a
        request to a host that is cut off blocks.
        """
        beat = 0
        with suppress(DistNetworkError):
            while not self._closed.wait(BEAT_SECONDS):
                beat += 1
                store.set(f"beats/{self._node}", f"{os.getpid()}/{beat}")
                if self._node == 0:
                    self._judge(store)
                if store.check([f"over/{(number := self._round)}"]):
                    self._over = number
                self._answered = time.monotonic()

    def _living(self, store: Store) -> list[int]:
        """Nodes whose beat has changed within LOST_SECONDS. Node 0 alone."""
        now = time.monotonic()
        for node in range(self._most):
            if store.check([key := f"beats/{node}"]):
                beat = store.get(key).decode()
                if self._beats.get(node, ("", 0.0))[0] != beat:
                    self._beats[node] = beat, now
        return [node for node, (_, seen) in list(self._beats.items()) if node == 0 or now - seen < LOST_SECONDS]

    def _waiting(self, store: Store) -> list[int]:
        return [node for node in range(self._most) if store.check([f"joins/{node}"])]

    def _judge(self, store: Store) -> None:
        """End the round if a node is lost, or waits for the next round."""
        if self._over == self._round:
            return
        living = self._living(store)
        lost = [node for node in self._members if node not in living]
        come = [node for node in self._waiting(store) if node in living]
        if lost or come:
            logger.warning("round %d is over: nodes lost: %s, nodes that wait: %s", self._round, lost, come)
            store.set(f"over/{self._round}", "")

    def _gather(self, store: Store) -> None:
        """Begin the next round once enough nodes wait. A living node of the last round is waited for: it comes."""
        living, now = self._living(store), time.monotonic()
        waiting = [node for node in self._waiting(store) if node in living or node == 0]
        if len(waiting) < self._least:
            self._enough = 0.0
            return
        self._enough = self._enough or now
        coming = [node for node in self._members if node in living and node not in waiting]
        if len(waiting) == self._most or (not coming and now - self._enough >= LAST_CALL_SECONDS):
            for node in waiting:
                store.delete_key(f"joins/{node}")
            store.set("round", json.dumps([self._round + 1, waiting]))
