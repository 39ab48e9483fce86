"""Runs a function on n gloo ranks: real processes on loopback, started once and used again by later calls.

    def total(rank: int, size: int, offset: int) -> float:
        value = torch.tensor(float(rank + offset))
        torch.distributed.all_reduce(value)
        return value.item()

    assert run_ranks(total, 3, 10) == [33.0] * 3

The function is passed by name, so it must be at the top level of a module. A rank survives the call: leave no state in
it. It gets its place in srun's variables (SLURM_*), so that the code under test must set torch's variables itself.
"""

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from fmscale.runtime import variables
from fmscale.runtime.tcp_store import LOOPBACK, serve_store

SETTLE_SECONDS = 1.0
"""Longest wait for the other ranks after a failure, before all are killed: gloo notices a closed
connection at once, but a rank that waits for a collective of a rank that raised would wait for ever."""


class RankDied(Exception):
    """A rank's process ended while it ran the function; `rank` and `status` (negative: the signal)."""

    def __init__(self, rank: int, status: int | None) -> None:
        super().__init__(f"rank {rank} died with status {status}")
        self.rank = rank
        self.status = status


class RankTimeout(Exception):
    """Some ranks did not finish in time; the message has the stack of each."""


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """`[function(rank, size, *args) for rank in range(size)]`, each call in its own process, at once.

    Raises the error of the first failed rank, with that rank's traceback as a note; RankDied; or RankTimeout after
    `timeout` seconds. After a death or a timeout the next call starts new processes.
    """
    return _pool.run(function, size, args, timeout)


def end_ranks() -> None:
    """End the ranks: the next call has new processes, which have imported nothing."""
    _pool.close()


class _Rank:
    """One process and the pipe to it."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("forkserver")
        with tempfile.NamedTemporaryFile(prefix=f"rank{number}-", suffix=".stacks", delete=False) as stacks:
            self.stacks = Path(stacks.name)
        self.pipe, theirs = context.Pipe()
        self.process: ForkServerProcess = context.Process(
            target=_serve, args=(theirs, str(self.stacks)), name=f"rank{number}", daemon=True
        )
        self.process.start()
        theirs.close()

    def where(self) -> str:
        """The stack of every thread of the process."""
        if self.process.pid:
            os.kill(self.process.pid, signal.SIGUSR2)
            self.process.join(0.3)
        return self.stacks.read_text()

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.stacks.unlink(missing_ok=True)


class _Pool:
    """As many ranks as in the largest call so far."""

    def __init__(self) -> None:
        self.ranks: list[_Rank] = []
        self.store: Any = None
        self.generation = 0
        self.size = 0
        self.calls = 0

    def run(self, function: Callable[..., Any], size: int, args: tuple[Any, ...], timeout: float) -> list[Any]:
        payload = pickle.dumps((function, args))
        self._grow(size)
        if size != self.size:
            self.generation, self.size = self.generation + 1, size
        self.calls += 1
        used = self.ranks[:size]
        outcomes: dict[int, tuple[bool, Any]] = {}
        failed: list[int] = []
        deadline = time.monotonic() + timeout
        for number, rank in enumerate(used):
            rank.pipe.send((number, size, self.generation, self.store.port, timeout, self.calls, payload))
        while len(outcomes) < size:
            pending: dict[Any, int] = {used[n].pipe: n for n in range(size) if n not in outcomes}
            ready = wait(pending, max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                number = pending[pipe]
                outcomes[number] = self._receive(number)
                if not outcomes[number][0]:
                    failed.append(number)
                    deadline = min(deadline, time.monotonic() + SETTLE_SECONDS)
        late = [number for number in range(size) if number not in outcomes]
        where = "" if failed else "".join(f"rank {number}:\n{used[number].where()}\n" for number in late)
        if late or any(not rank.process.is_alive() for rank in used):
            self.close()
        if failed:
            self.size = 0
            failed.sort(key=lambda number: not isinstance(outcomes[number][1], RankDied))
            raise outcomes[failed[0]][1]
        if late:
            raise RankTimeout(f"ranks {late} of {size} were not done after {timeout} s\n{where}")
        return [outcomes[number][1] for number in range(size)]

    def _receive(self, number: int) -> tuple[bool, Any]:
        rank = self.ranks[number]
        try:
            done, value, text = rank.pipe.recv()
        except EOFError:
            rank.process.join()
            return False, RankDied(number, rank.process.exitcode)
        if not done:
            value.add_note(f"raised on rank {number}:\n{text}")
        return done, value

    def _grow(self, size: int) -> None:
        if self.ranks and not all(rank.process.is_alive() for rank in self.ranks):
            self.close()
        if self.store is None:
            self.store = serve_store(LOOPBACK, 0, 300.0)
        with _environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo"):
            multiprocessing.set_forkserver_preload(["torch.distributed"])
            forkserver.ensure_running()
        while len(self.ranks) < size:
            self.ranks.append(_Rank(len(self.ranks)))

    def close(self) -> None:
        """Kill every rank."""
        for rank in self.ranks:
            rank.kill()
        self.ranks, self.size = [], 0


@contextlib.contextmanager
def _environment(**values: str) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _serve(pipe: Connection, stacks: str) -> None:
    """Life of a rank: join the group of a call, run the function, send its result back."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stacks_file = open(stacks, "w")  # noqa: SIM115  (open for the life of the process)
    faulthandler.register(signal.SIGUSR2, file=stacks_file)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    joined = -1
    while True:
        try:
            number, size, generation, port, timeout, call, payload = pipe.recv()
        except EOFError:
            return
        try:
            # A call may have left the group, as a run does at its end.
            if generation != joined or not _in_group():
                _join(number, size, f"generation{generation}/{call}", port, timeout)
                joined = generation
            # a prefix for this call's keys in the store that all calls share
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(call)
            function, args = pickle.loads(payload)
            answer = (True, function(number, size, *args), "")
        except Exception as error:
            answer = (False, _portable(error), traceback.format_exc())
        variables.take_back()
        sys.stdout.flush()
        pipe.send(answer)


def _in_group() -> bool:
    from torch import distributed

    return distributed.is_initialized()


def _join(number: int, size: int, prefix: str, port: int, timeout: float) -> None:
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        if "deepspeed" in sys.modules:
            # DeepSpeed keeps its own groups and would continue to use them. Without import_deepspeed's settings it
            # would compile an extension here, under a lock file that a killed rank leaves for all later ranks.
            from fmscale.train.engine.accelerator import import_deepspeed

            deepspeed = import_deepspeed("cpu")
            deepspeed.comm.init_distributed(auto_mpi_discovery=False)
            deepspeed.comm.destroy_process_group()
            variables.take_back()
        else:
            distributed.destroy_process_group()
    place = {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NODEID": 0}
    sizes = dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"), size)
    os.environ.update({name: str(value) for name, value in (place | sizes).items()})
    # the store that all calls share is served by the pool, as torchrun's agent does
    os.environ.update(MASTER_ADDR=LOOPBACK, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    store = TCPStore(LOOPBACK, port, is_master=False)
    distributed.init_process_group(
        "gloo",
        store=PrefixStore(prefix, store),
        rank=number,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )


def _portable(error: Exception) -> Exception:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


_pool = _Pool()
atexit.register(_pool.close)
