"""Trainers to be killed, as functions for a process. Ranks are threads, each with a persist process."""

import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import torch

from fmscale.checkpoint.read.restore import restore
from fmscale.checkpoint.saver import Saver
from fmscale.checkpoint.snapshot import snapshot
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, hash_store, in_ranks, process_of, wrong

STATE: Tensors = {
    **{(f"layers.{i}", "weight"): ("float32", (256, 1024)) for i in range(4)},
    **{(f"frozen.{i}", "weight"): ("float32", (256, 1024)) for i in range(2)},
}
"""6 MiB, a third of which never changes: 12 ms to write, so that kills fall into every phase."""


def frozen(name: str) -> bool:
    return name.startswith("frozen")


def train(pipe: Connection, url: str, ranks: int) -> None:
    """Resume from the newest checkpoint, or begin, and save every step until killed. Prints {"pids": [...]},
    {"restored": step}, {"acknowledged": step}.
    """
    torch.set_num_threads(1)
    config = CheckpointConfig(keep_last=2, grace_seconds=0.0, complete_every=5)
    fleet = Fleet(url, tensors=STATE, ranks=ranks, seed=None, config=config)
    pipe.send({"pids": [process_of(saver).pid for saver in fleet.savers]})
    store = hash_store()

    def one(rank: int) -> Any:
        waits = HostWaits(store, World(rank=rank, world_size=ranks))
        return restore(open_store(url), RUN, fleet.pieces[rank], waits=waits)

    restored = in_ranks(one, ranks)[0]
    step = restored.step if restored else 0
    if restored:
        bad = [name for mine in fleet.pieces for name in wrong_at(mine, step)]
        assert not bad, f"step {step} is mixed: {bad}"
        assert not restored.passed_over, restored.passed_over
        pipe.send({"restored": step})
    while True:
        step += 1
        fleet.save(step, changed=lambda piece: not frozen(piece.name))
        for report in fleet.savers[0].poll():
            if report.state == "acknowledged":
                pipe.send({"acknowledged": report.step})


def drain(saver: Saver) -> None:
    """Ask the persist process to drain after it has the whole copy."""
    assert saver._handing is not None
    saver._handing.result()
    saver._writer.drain()


def drain_and_die(pipe: Connection, url: str) -> None:
    """Die right after the persist process gets its drain."""
    fleet = Fleet(url, ranks=1)
    fleet.saved(1)
    fleet.save(2)
    drain(fleet.savers[0])
    pipe.send({"pids": [process_of(fleet.savers[0]).pid]})
    os.kill(os.getpid(), signal.SIGKILL)


def drain_and_die_alone(pipe: Connection, url: str) -> None:
    """Die after rank 0's persist process gets the drain of a save that rank 1 never begins."""
    fleet = Fleet(url, ranks=2)
    fleet.saved(1)
    fleet.savers[0].fence()
    fleet.savers[0].save(2, fleet.pieces[0], {})
    drain(fleet.savers[0])
    pipe.send({"pids": [process_of(saver).pid for saver in fleet.savers]})
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_copying(pipe: Connection, url: str) -> None:
    """Die when half of a snapshot is copied, and the write of that half has begun."""
    fleet = Fleet(url, ranks=1, tensors=STATE)
    fleet.saved(1)
    copy, copied = snapshot.copy_block, iter(range(len(STATE)))

    def half(target: torch.Tensor, one: snapshot.Copy) -> None:
        if next(copied) == len(STATE) // 2:
            pipe.send({"pids": [process_of(fleet.savers[0]).pid]})
            os.kill(os.getpid(), signal.SIGKILL)
        copy(target, one)

    setattr(snapshot, "copy_block", half)  # noqa: B010
    fleet.savers[0]._writer.drain()
    fleet.save(2)
    fleet.savers[0].fence()


def wrong_at(pieces: list[Any], step: int) -> list[str]:
    """Pieces with values of another step; frozen pieces keep their first values."""
    live = [piece for piece in pieces if not frozen(piece.name)]
    return wrong(live, step) + [piece.name for piece in pieces if frozen(piece.name) and bool(piece.tensor.any())]
