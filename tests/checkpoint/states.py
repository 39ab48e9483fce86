"""States whose elements encode their tensor, step and place, so that any mixture shows; and ranks in threads of one
process that save and restore them.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.piece import Piece, elements
from fmscale.checkpoint.persist.client import ProcessWriter
from fmscale.checkpoint.persist.worker import Worker
from fmscale.checkpoint.read.restore import RestoreResult, restore
from fmscale.checkpoint.saver import Saver, SaveReport
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store

T = TypeVar("T")

RUN = "run"
Tensors = dict[tuple[str, str], tuple[str, tuple[int, ...]]]

SMALL: Tensors = {
    **{
        (f"layers.{i}.{name}", state): ("float32", shape)
        for i in range(2)
        for name, shape in (("wq.weight", (40, 24)), ("norm.weight", (24,)))
        for state in ("weight", "exp_avg", "exp_avg_sq")
    },
    ("steps", "buffer"): ("int64", ()),
    ("mask", "buffer"): ("bool", (5, 3)),
    ("table", "weight"): ("bfloat16", (7, 11)),
}
"""(name, state) -> (type, shape): 24 kB in all."""


QUICK = CheckpointConfig(grace_seconds=0.0, incremental=False, retries=2)


def values(key: tuple[str, str], dtype: str, step: int, start: int, count: int) -> torch.Tensor:
    """Values of elements [start, start + count) of a tensor at a step."""
    seed = zlib.crc32("/".join(key).encode()) + 7919 * step
    numbers = (seed + torch.arange(start, start + count, dtype=torch.int64)) % 65521
    if dtype == "bool":
        return numbers % 3 == 0
    return (numbers % 251 if dtype in ("bfloat16", "uint8") else numbers).to(getattr(torch, dtype))


def cut(tensors: Tensors, ranks: int, seed: int | None = 0) -> list[list[tuple[tuple[str, str], int, int]]]:
    """For each rank its (key, start, count) of every tensor: equal parts for seed None, else random parts, in several
    pieces and out of order.
    """
    chance = random.Random(seed)
    parts: list[list[tuple[tuple[str, str], int, int]]] = [[] for _ in range(ranks)]
    for key, (_, shape) in tensors.items():
        size = elements(shape)
        if seed is None:
            ends = [size * (rank + 1) // ranks for rank in range(ranks)]
            owners = list(range(ranks))
        else:
            pieces = chance.randint(1, ranks + 2)
            ends = [*sorted(chance.randint(0, size) for _ in range(pieces - 1)), size]
            owners = [chance.randrange(ranks) for _ in range(pieces)]
        start = 0
        for owner, end in zip(owners, ends, strict=True):
            if end > start:
                parts[owner].append((key, start, end - start))
            start = end
    if seed is not None:
        for mine in parts:
            chance.shuffle(mine)
    return parts


def pieces_at(tensors: Tensors, mine: Sequence[tuple[tuple[str, str], int, int]], step: int | None) -> list[Piece]:
    """Pieces with the values of a step, or zeros."""
    found = []
    for key, start, count in mine:
        dtype, shape = tensors[key]
        full = values(key, dtype, step or 0, start, count)
        tensor = torch.zeros_like(full) if step is None else full
        found.append(Piece(name=key[0], state=key[1], dtype=dtype, shape=shape, start=start, tensor=tensor))
    return found


def advance(pieces: Sequence[Piece], step: int, changed: Callable[[Piece], bool] = lambda _: True) -> None:
    """Write the values of a step into live pieces, as an optimizer would."""
    for piece in pieces:
        if changed(piece):
            key = (piece.name, piece.state)
            piece.tensor.copy_(values(key, piece.dtype, step, piece.start, piece.count))


def wrong(pieces: Sequence[Piece], step: int) -> list[str]:
    """Pieces with wrong values for a step."""
    return [
        f"{piece.name} ({piece.state}) from {piece.start}"
        for piece in pieces
        if not torch.equal(piece.tensor, values((piece.name, piece.state), piece.dtype, step, piece.start, piece.count))
    ]


def in_ranks(function: Callable[[int], T], ranks: int) -> list[T]:
    """`function(rank)` in a thread for each rank, at once."""
    with ThreadPoolExecutor(ranks) as pool:
        return [future.result() for future in [pool.submit(function, rank) for rank in range(ranks)]]


def take_lease(url: str, run: str = RUN) -> int:
    """Take the run's lease; its number."""
    return acquire(run_log(open_store(url), run), "test").number


@dataclass
class Fleet:
    """The savers of all ranks of a run."""

    url: str
    tensors: Tensors = field(default_factory=lambda: SMALL)
    ranks: int = 2
    seed: int | None = 0
    config: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(grace_seconds=0.0))
    lease: int | None = None
    run: str = RUN
    offset: int = 0
    """Difference of the values' steps from the steps of the saves: another run has other values."""

    def __post_init__(self) -> None:
        self.lease = self.lease if self.lease is not None else take_lease(self.url, self.run)
        self.savers = [
            Saver(
                self.url,
                self.run,
                world=World(rank=rank, world_size=self.ranks),
                lease=self.lease,
                config=self.config,
                deadline=20.0,
            )
            for rank in range(self.ranks)
        ]
        self.pieces = [pieces_at(self.tensors, mine, None) for mine in cut(self.tensors, self.ranks, self.seed)]

    def save(self, step: int, *, wait: bool = True, changed: Callable[[Piece], bool] = lambda _: True) -> None:
        """Advance the state to a step and begin to save it."""
        for rank, (saver, pieces) in enumerate(zip(self.savers, self.pieces, strict=True)):
            saver.fence()
            advance(pieces, step + self.offset, changed)
            saver.save(step, pieces, {"step": step}, {"rank": rank}, wait=wait)

    def settle(self, seconds: float = 60.0) -> list[list[SaveReport]]:
        """Wait until every save has ended; the reports by rank."""
        for saver in self.savers:
            assert saver.drain(seconds), "a save came to no end"
        return [saver.poll() for saver in self.savers]

    def saved(self, step: int, **how: Any) -> list[list[SaveReport]]:
        """Save a step; it must succeed."""
        self.save(step, **how)
        reports = self.settle()
        assert {one.state for mine in reports for one in mine} == {"acknowledged"}, reports
        return reports

    def close(self) -> list[list[SaveReport]]:
        """End the savers."""
        return [saver.close(20.0) for saver in self.savers]

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def process_of(saver: Saver) -> ProcessWriter:
    """The trainer's end of a saver's persist process."""
    assert isinstance(saver._writer, ProcessWriter)
    return saver._writer


def worker_of(saver: Saver) -> Worker:
    """The worker of a saver whose worker is a thread."""
    assert isinstance(saver._writer, Worker)
    return saver._writer


def hash_store() -> Any:
    """A store for the waits of ranks in threads."""
    return torch.distributed.HashStore()  # type: ignore[attr-defined]


def restore_in(
    url: str, ranks: int, *, tensors: Tensors = SMALL, seed: int | None = 1, run: str = RUN, **how: Any
) -> tuple[list[RestoreResult | None], list[list[Piece]]]:
    """Restore on that many ranks, with other cuts than in the save; each rank's result and pieces."""
    store = hash_store()
    pieces = [pieces_at(tensors, mine, None) for mine in cut(tensors, ranks, seed)]

    def one(rank: int) -> RestoreResult | None:
        waits = HostWaits(store, World(rank=rank, world_size=ranks)) if ranks > 1 else None
        return restore(open_store(url), run, pieces[rank], waits=waits, deadline=20.0, **how)

    return in_ranks(one, ranks), pieces


def assert_restores(url: str, step: int, ranks: int = 2, **how: Any) -> list[RestoreResult]:
    """Restore exactly that step; each rank's result."""
    found, pieces = restore_in(url, ranks, **how)
    restored = [one for one in found if one is not None]
    assert [one.step for one in restored] == [step] * ranks
    assert [bad for mine in pieces for bad in wrong(mine, step)] == []
    return restored


def states(reports: Sequence[Sequence[SaveReport]]) -> list[list[str]]:
    """Outcomes of the saves, by rank."""
    return [[report.state for report in mine] for mine in reports]
