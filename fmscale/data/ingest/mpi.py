"""Writers as MPI ranks: rank 0 lists inputs, trains, distributes units and commits; all ranks, rank 0 too, do units.

Ranks send each other small point-to-point messages of JSON. They look for messages during units, and wait for messages
on the host with a time limit, so that no rank ever waits inside a collective (promise P8). Pending unit i belongs to
rank i mod size.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fmscale.data.ingest.job import IngestJob, begin_job, commit_job
from fmscale.data.ingest.record import decode_record
from fmscale.data.ingest.request import IngestRequest, IngestResult, Progress
from fmscale.data.ingest.unit import UnitTask, open_writer
from fmscale.data.workers.messages import Message, Reporter, decode, describe_error, encode, rebuild_error
from fmscale.errors import ConfigError, RankError
from fmscale.runtime.mpi import import_mpi
from fmscale.runtime.world import World

logger = logging.getLogger(__name__)

TAG = 7301
"""Tag of all messages."""

NOTICE_SECONDS = 10.0
"""Time between two notices of a waiting rank."""

SILENT_SECONDS = 3600.0
"""Silence after which a rank counts as lost: writers report every batch, and rank 0 is silent for some minutes at
most, while it trains a vocabulary of 128 k.
"""

POLL_SECONDS = (0.001, 0.2)
"""First and longest pause of a rank that waits for messages; each pause is twice the pause before."""

BEAT_SECONDS = 1.0
"""Least time between two messages of progress to rank 0."""


class MpiRanks:
    """Messages between the ranks of the world."""

    def __init__(self, world: World) -> None:
        """Raises ConfigError if mpi4py is missing or sees another world than the environment describes."""
        try:
            MPI = import_mpi(world)
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                "Ingest under mpirun needs mpi4py and the MPI library that mpirun belongs to",
                found=str(error)[:200],
                remedy="pip install 'fmscale[mpi]', and put that mpirun's folder first on PATH.",
            ) from error
        self._mpi: Any = MPI
        self._world: Any = MPI.COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self._sent: list[tuple[Any, bytes]] = []
        if (self.rank, self.size) != (world.rank, world.world_size):
            raise ConfigError(
                "mpirun and mpi4py are of different MPI libraries",
                found=f"rank {self.rank} of {self.size}; mpirun says {world.rank} of {world.world_size}",
                remedy="Put the folder of the MPI that mpi4py uses first on PATH, or set MPI4PY_LIBMPI.",
            )

    def send(self, rank: int, message: Message) -> None:
        """Send without waiting for the receiver."""
        data = encode(message)
        self._sent = [(request, kept) for request, kept in self._sent if not request.Test()]
        self._sent.append((self._world.Isend([data, self._mpi.BYTE], dest=rank, tag=TAG), data))

    def receive(self) -> tuple[int, Message] | None:
        """The next message and its sender, or None."""
        status = self._mpi.Status()
        if not self._world.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG, status=status):
            return None
        data = bytearray(status.Get_count(self._mpi.BYTE))
        self._world.Recv([data, self._mpi.BYTE], source=status.Get_source(), tag=TAG)
        return status.Get_source(), decode(bytes(data))

    def wait(self, awaited: Callable[[], list[int]], phase: str) -> tuple[int, Message]:
        """Wait for the next message; notices name the ranks in `awaited`.

        Raises RankError after SILENT_SECONDS without a message.
        """
        begin = noticed = time.monotonic()
        pause = POLL_SECONDS[0]
        while (received := self.receive()) is None:
            time.sleep(pause)
            pause = min(pause * 2, POLL_SECONDS[1])
            now = time.monotonic()
            names = ", ".join(map(str, awaited()))
            if now - begin >= SILENT_SECONDS:
                raise RankError(
                    f"rank {self.rank} waited {now - begin:.0f} s for rank {names} in {phase}",
                    remedy="Look at that rank's log; run again to go on: sealed units stay.",
                )
            if now - noticed >= NOTICE_SECONDS:
                noticed = now
                logger.warning("rank %d waited %.0f s for rank %s in %s", self.rank, now - begin, names, phase)
        return received

    def flush(self) -> None:
        """Wait until all messages are sent. A rank must do so before its end."""
        end = time.monotonic() + SILENT_SECONDS
        while self._sent and time.monotonic() < end:
            self._sent = [(request, kept) for request, kept in self._sent if not request.Test()]
            time.sleep(POLL_SECONDS[0])


def ingest_on_ranks(request: IngestRequest, world: World, progress: Progress) -> IngestResult:
    """Run the job on all ranks. Every rank gets the result, or an error if a rank failed."""
    ranks = MpiRanks(world)
    try:
        return _lead(ranks, request, progress) if ranks.rank == 0 else _follow(ranks)
    finally:
        ranks.flush()


def _lead(ranks: MpiRanks, request: IngestRequest, progress: Progress) -> IngestResult:
    followers = range(1, ranks.size)
    try:
        result = begin_job(request, progress)
        if isinstance(result, IngestJob):
            for rank in followers:
                ranks.send(rank, {"task": asdict(result.task), "units": result.pending[rank :: ranks.size]})
            _lead_units(ranks, result)
            result = commit_job(result, ranks.size)
    except BaseException as error:
        for rank in followers:
            ranks.send(rank, {"failed": describe_error(error)})
        raise
    for rank in followers:
        ranks.send(rank, {"result": asdict(result)})
    return result


def _lead_units(ranks: MpiRanks, job: IngestJob) -> None:
    """Do rank 0's units, and take the records of the other ranks until all have come."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each rank has one core
    left = {rank: len(job.pending[rank :: ranks.size]) for rank in range(1, ranks.size)}

    def take(rank: int, message: Message) -> None:
        if "error" in message:
            raise rebuild_error(message["error"], f"rank {rank}, {job.describe(message['unit'])}")
        job.advance(message.get("advance", 0))
        if "done" in message:
            job.done(decode_record(message["done"].encode()))
            left[rank] -= 1

    def drain(size: int) -> None:
        job.advance(size)
        while received := ranks.receive():
            take(*received)

    with open_writer(job.task) as writer:
        for unit in job.pending[:: ranks.size]:
            job.done(writer.run(unit, drain))
    while any(left.values()):
        take(*ranks.wait(lambda: [rank for rank, units in left.items() if units], "ingest"))


def _follow(ranks: MpiRanks) -> IngestResult:
    _, message = ranks.wait(lambda: [0], "ingest: listing and training the tokenizer")
    if "task" in message:
        message = _follow_units(ranks, UnitTask(**message["task"]), message["units"])
    if "result" in message:
        return IngestResult(**message["result"])
    failed = message["failed"]
    raise RankError(
        f"Ingest ended because rank 0 reports: {failed['cause']}",
        found=failed["found"],
        remedy=failed["remedy"] or "The log of rank 0 says more.",
    )


def _follow_units(ranks: MpiRanks, task: UnitTask, units: list[int]) -> Message:
    """Do this rank's units. Returns the last message of rank 0."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reporter = Reporter(lambda message: ranks.send(0, message), BEAT_SECONDS)

    def advance(size: int) -> None:
        reporter.advance(size)
        if received := ranks.receive():
            raise _Ended(received[1])

    unit = units[0] if units else 0
    try:
        if units:
            with open_writer(task) as writer:
                for unit in units:
                    record = writer.run(unit, advance)
                    ranks.send(0, {"done": record.encode().decode(), "advance": reporter.take()})
    except _Ended as ended:
        return dict(ended.args[0])
    except Exception as error:
        ranks.send(0, {"error": describe_error(error), "unit": unit})
    return ranks.wait(lambda: [0], "ingest: the others' units and the commit")[1]


class _Ended(Exception):
    """Carries the last message of rank 0, which came while this rank worked on a unit."""
