"""Agreement of ranks on one checkpoint by waits on the host: all ranks go on or none (promise P8)."""

import json
from collections.abc import Callable
from typing import TypeVar

from fmscale.errors import CorruptData, FmscaleError, FormatError, ObjectNotFound, RankError
from fmscale.runtime.waits import HostWaits

T = TypeVar("T")

DAMAGE = (CorruptData, ObjectNotFound, FormatError)
"""Errors that make a checkpoint invalid. Any other error, such as a store that does not answer, proves no damage."""


class RankVote:
    """Votes of the ranks of a run, or of a single process."""

    def __init__(self, waits: HostWaits | None, name: str, deadline: float) -> None:
        """`name` is the name of the waits; without `waits` the process is alone."""
        self._waits, self._name, self._deadline = waits, name, deadline
        self.rank = 0 if waits is None else waits.rank

    def exchange(self, value: str) -> list[str]:
        """Every rank's value, by rank."""
        if self._waits is None:
            return [value]
        return self._waits.barrier(self._name, value=value, deadline=self._deadline)

    def first(self, call: Callable[[], str]) -> str:
        """Call `call` on rank 0 and return its value on all ranks. An error on rank 0 raises on every rank."""
        return self._together(call if self.rank == 0 else lambda: "")[0]

    def all_find(self, call: Callable[[], T]) -> tuple[T | None, str]:
        """(value of `call`, "") if no rank found damage, else (None, the ranks with their damage). Raises any other
        error of this rank, and RankError for another rank's error.
        """
        values: list[T] = []

        def damage() -> str:
            try:
                values.append(call())
            except DAMAGE as error:
                return str(error)
            return ""

        bad = [f"rank {rank}: {problem}" for rank, problem in enumerate(self._together(damage)) if problem]
        return (None, "; ".join(bad[:3])) if bad else (values[0], "")

    def _together(self, call: Callable[[], str]) -> list[str]:
        """Call `call` on every rank and return all values by rank. An error on any rank raises on every rank."""
        failed: FmscaleError | None = None
        value = ""
        try:
            value = call()
        except FmscaleError as error:
            failed = error
        answers = [json.loads(answer) for answer in self.exchange(json.dumps([str(failed) if failed else "", value]))]
        if failed is not None:
            raise failed
        for rank, (problem, _) in enumerate(answers):
            if problem:
                raise RankError(f"rank {rank} failed: {problem.rstrip('.')}", remedy="Its log says more.")
        return [value for _, value in answers]
