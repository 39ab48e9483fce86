"""R2: the ranks' store under the start and restore of 512 simulated ranks.

    python -m benchmarks.clusters_store [--quick]

The store is served by the real code in a process of its own, whose CPU time counts. The requests and waits of a start
and a restore are recorded from a real run of two ranks under the real launcher. Each simulated rank is a thread with
two connections, as a real rank has, and takes the same steps by the real waits and the real watchdog's turns; its
imports end at a moment of its own.
"""

import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clusters_rank import run_ranks_of, small_run
from benchmarks.harness import Claim
from fmscale.runtime.failure import Whereabouts
from fmscale.runtime.group import allow_open_files
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.tcp_store import LOOPBACK, serve_store
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.watchdog import Watchdog
from fmscale.runtime.world import World

RANKS = {False: 512, True: 64}
PROCESSES = 8
SKEW_SECONDS = 3.0
"""Longest difference between the moments at which two ranks have imported all and come to the meeting."""
TURNS = 3
"""Looks of each rank's watchdog, which takes one every 2 s: a start of 2 ranks takes 4 to 6 s."""
TARGET_SECONDS, TARGET_REQUESTS = 1.0, 3.0

VALUES = ("get", "multi_get")
"""Requests for which torch's client sends two messages: it first waits for the keys."""

Step = tuple[str, str, str]
"""(kind, name or key, value) of a wait or a request."""


def record(folder: Path) -> list[list[Step]]:
    """Steps of rank 0 and of rank 1 in a start that restores a checkpoint of two ranks at ZeRO stage 3."""
    for steps in (2, 3):
        found = run_ranks_of("requests", small_run(folder, steps, stage=3), folder / f"to-{steps}")
    return [_steps(told) for told in found]


def _steps(told: Sequence[Sequence[Any]]) -> list[Step]:
    """The waits, and the requests outside of them, which are torch's; the watchdog's come from its own code."""
    steps: list[Step] = []
    inside = False
    for thread, kind, name, value in told:
        if thread == "main":
            inside = kind.startswith("begin")
            if inside:
                steps.append((kind.removeprefix("begin "), name, value))
        elif thread != "watchdog" and not inside and "torch/" in str(name):
            steps.append((kind, str(name), "x" * value))
    return steps


class Counted:
    """A connection to the store that counts its requests by their key's first part."""

    def __init__(self, store: Any, counts: "Counter[str]") -> None:
        self._store, self.counts = store, counts

    def clone(self) -> "Counted":
        """Another connection, which counts into the same counter."""
        return Counted(self._store.clone(), self.counts)

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._store, name)

        def request(*values: Any) -> Any:
            key = values[0][0] if isinstance(values[0], list) else str(values[0])
            answer = inner(*values)
            early = name == "compare_set" and answer == b"?"
            if name != "set_timeout":
                self.counts[f"{'early ' * early}{name} {key.partition('/')[0]}"] += 1
            return answer

        return request


def serve(pipe: Connection) -> None:
    """Serve the store; answer every message with this process's CPU seconds."""
    allow_open_files()
    store = serve_store(LOOPBACK, 0, 300.0)
    pipe.send(store.port)
    while pipe.recv():
        spent = psutil.Process().cpu_times()
        pipe.send(spent.user + spent.system)


class Rank:
    """A simulated rank, connected to the store."""

    def __init__(self, rank: int, size: int, port: int, folder: Path) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]
        from torch.distributed.distributed_c10d import PrefixStore

        self.rank, self.size = rank, size
        self.store = Counted(PrefixStore("fmscale/0", TCPStore(LOOPBACK, port, is_master=False)), Counter())
        world, where = World(rank=rank, world_size=size), Whereabouts(phase="meeting")
        self._waits = HostWaits(self.store, world)  # type: ignore[arg-type]
        self._dog = Watchdog(self.store, world, where, folder, StopFlag(), limit=600.0)  # type: ignore[arg-type]
        # A connection looks up the server's name: 64 ranks that did so at once waited 5 s for the resolver.
        assert self._waits._late is not None
        self._waits._late.connect()

    def start_and_restore(self, steps: list[Step], begin: float) -> "Counter[str]":
        """Take all steps; the rank's requests."""
        late = random.Random(self.rank).uniform(0, SKEW_SECONDS)
        time.sleep(max(0.0, begin + late - time.monotonic()))
        turns = [round(len(steps) * turn / TURNS) - 1 for turn in range(1, TURNS + 1)]
        for number, (kind, name, value) in enumerate(steps):
            if kind == "barrier":
                self._waits.barrier(name, value=value, deadline=300.0)
            elif kind == "arrive":
                self._waits.arrive(name, value)
            elif kind == "wait" and "torch/" not in name:
                self._waits.wait(name, ranks=[0], deadline=300.0)
            else:
                _torch(self.store, kind, name, value, self.rank, self.size)
            if number in turns:
                self._dog._turn()
        self._dog.close()
        return self.store.counts


def _torch(store: Any, kind: str, name: str, value: str, rank: int, size: int) -> None:
    """A request of gloo, which tells the rank's own address, and looks up those of its neighbours in the ring."""
    [key] = re.findall(r"torch/[^']*/(?=\d+'?\]?$)", name)
    if kind == "set":
        store.set(f"{key}{rank}", value)
        return
    for peer in ((rank + 1) % size, (rank - 1) % size):
        store.wait([f"{key}{peer}"]) if kind == "wait" else store.get(f"{key}{peer}")


def some_ranks(pipe: Connection, ranks: Sequence[int], size: int, port: int, steps: list[list[Step]], at: str) -> None:
    """Connect ranks, start them in threads of this process at the moment that the pipe gives, and send the sums of
    their requests.
    """
    allow_open_files()
    threading.stack_size(1 << 20)
    sys.setswitchinterval(2e-4)  # by default a thread that has its answer waits 5 ms for another
    own = [Rank(rank, size, port, Path(at)) for rank in ranks]
    pipe.send("ready")
    begin = pipe.recv()
    with ThreadPoolExecutor(len(own)) as pool:
        asked = [pool.submit(one.start_and_restore, steps[min(one.rank, 1)], begin) for one in own]
        pipe.send(sum((each.result() for each in asked), Counter()))


def start_and_restore(size: int, steps: list[list[Step]], folder: Path) -> dict[str, Any]:
    """CPU seconds of the store's process, wall seconds, and requests of one start of `size` ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "benchmarks.clusters_store"])
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # or a line for each connection
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    ours.send(True)
    before = ours.recv()
    pipes, workers = [], []
    for number in range(PROCESSES):
        mine, other = context.Pipe()
        ranks = range(number, size, PROCESSES)
        worker = context.Process(target=some_ranks, args=(other, ranks, size, port, steps, str(folder)), daemon=True)
        worker.start()
        pipes.append(mine)
        workers.append(worker)
    for pipe in pipes:
        pipe.recv()
    begin = time.monotonic()
    for pipe in pipes:
        pipe.send(begin)
    counts: Counter[str] = sum((pipe.recv() for pipe in pipes), Counter())
    seconds = time.monotonic() - begin
    ours.send(True)
    spent = ours.recv() - before
    ours.send(False)
    for worker in (*workers, server):
        worker.join()
    barriers = sum(kind == "barrier" for kind, _, _ in steps[0])
    # Each turn of a watchdog has a look for a failure; the other looks are those of ranks that wait.
    early = counts["early compare_set failed"] - TURNS * size
    waited = sum(count for name, count in counts.items() if name.endswith(" barrier")) + early
    messages = sum(count * (2 if name.split()[0] in VALUES else 1) for name, count in counts.items())
    return {
        "cpu": spent,
        "wall": seconds,
        "barriers": barriers,
        "requests": sum(counts.values()),
        "messages": messages,
        "a_barrier": waited / barriers / size,
        "early": early / barriers / size,
        "by_kind": dict(counts),
    }


def store_claims(*, quick: bool) -> list[Claim]:
    """R2: the store's CPU time for a start and restore of 512 ranks, and its requests a barrier."""
    size = RANKS[quick]
    with tempfile.TemporaryDirectory(prefix="fmscale-store-") as place:
        steps = record(Path(place))
        run = start_and_restore(size, steps, Path(place))
    shown = f"{run['barriers']} barriers, {run['requests']} requests in {run['messages']} messages, {run['wall']:.1f} s"
    from benchmarks.clusters_manifest import manifest_claim

    return [
        Claim(
            id="R2.store",
            what=f"CPU time of the store's process for a start and restore of {size} simulated ranks: {shown}",
            unit="s",
            ours=run["cpu"],
            ratio=run["cpu"],
            target=f"<= {TARGET_SECONDS}",
            ok=run["cpu"] <= TARGET_SECONDS,
            runs=[{"system": "fmscale", "value": run["cpu"], **run}],
        ),
        Claim(
            id="R2.requests",
            what=f"requests a rank and barrier of {size} ranks, of which {run['early']:.1f} look for a failure",
            unit="requests",
            ours=run["a_barrier"],
            ratio=run["a_barrier"],
            target=f"<= {TARGET_REQUESTS}",
            ok=run["a_barrier"] <= TARGET_REQUESTS,
            runs=[{"system": "fmscale", "value": run["a_barrier"], **run}],
        ),
        manifest_claim(quick=quick),
    ]


if __name__ == "__main__":
    for claim in store_claims(quick="--quick" in sys.argv):
        print(claim.id, claim.ours, claim.unit, claim.what, json.dumps(claim.runs))
