"""Ranks that do the same to one checkpoint and go on only together, by waits on the host (promise P8)."""

import json
from collections.abc import Callable
from typing import TypeVar

from fmscale.errors import CorruptData, FmscaleError, FormatError, ObjectNotFound, RankError
from fmscale.runtime.waits import HostWaits

T = TypeVar("T")

DAMAGE = (CorruptData, ObjectNotFound, FormatError)
"""Errors that make a checkpoint invalid. Any other (a store that does not answer) says nothing about it."""


class RankVote:
    """The ranks of a run, or a process alone."""

    def __init__(self, waits: HostWaits | None, name: str, deadline: float) -> None:
        """`name` is that of the waits."""
        self._waits, self._name, self._deadline = waits, name, deadline
        self.rank = 0 if waits is None else waits.rank

    def exchange(self, value: str) -> list[str]:
        """Every rank's value, by rank."""
        if self._waits is None:
            return [value]
        return self._waits.barrier(self._name, value=value, deadline=self._deadline)

    def first(self, call: Callable[[], str]) -> str:
        """The value that `call` gives on rank 0, on all ranks. If it raises there, this raises everywhere."""
        return self._together(call if self.rank == 0 else lambda: "")[0]

    def all_find(self, call: Callable[[], T]) -> tuple[T | None, str]:
        """(what `call` gives, "") where no rank found damage, else (None, which rank found what). Raises any
        other error of this rank, and RankError for another's.
        """
        found: list[T] = []

        def damage() -> str:
            try:
                found.append(call())
            except DAMAGE as error:
                return str(error)
            return ""

        bad = [f"rank {rank}: {what}" for rank, what in enumerate(self._together(damage)) if what]
        return (None, "; ".join(bad[:3])) if bad else (found[0], "")

    def _together(self, call: Callable[[], str]) -> list[str]:
        """The value that `call` gives on each rank. If it raises on a rank, this raises everywhere."""
        failed: FmscaleError | None = None
        value = ""
        try:
            value = call()
        except FmscaleError as error:
            failed = error
        answers = [json.loads(one) for one in self.exchange(json.dumps([str(failed) if failed else "", value]))]
        if failed is not None:
            raise failed
        for rank, (problem, _) in enumerate(answers):
            if problem:
                raise RankError(f"rank {rank} failed: {problem.rstrip('.')}", remedy="Its log says more.")
        return [value for _, value in answers]
