"""Agreement of ranks on one checkpoint by waits on the host: all ranks go on or none (promise P8)."""

import json
from collections.abc import Callable

from fmscale.errors import CorruptData, FmscaleError, FormatError, ObjectNotFound, RankError
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits

DAMAGE = (CorruptData, ObjectNotFound, FormatError)
"""Errors that make a checkpoint invalid. Any other error, such as a store that does not answer, proves no damage."""


class RankVote:
    """Votes of the ranks of a run, or of a single process."""

    def __init__(self, waits: HostWaits | None, name: str, deadline: float, stop: StopFlag | None = None) -> None:
        """`name` is the name of the waits, which heed `stop`; without `waits` the process is alone."""
        self._waits, self._name, self._deadline, self._stop = waits, name, deadline, stop
        self.rank = 0 if waits is None else waits.rank

    def first(self, call: Callable[[], str]) -> str:
        """Call `call` on rank 0 and return its value on all ranks. An error on rank 0 raises on every rank."""
        return self._together(call if self.rank == 0 else lambda: "", ())[0][0]

    def all_find(self, call: Callable[[], str]) -> tuple[list[str], str]:
        """(values of `call` by rank, "") if no rank found damage, else ([], the ranks with their damage). Raises any
        other error of this rank, and RankError for another rank's error.
        """
        answers = self._together(call, DAMAGE)
        bad = [f"rank {rank}: {damage}" for rank, (_, damage, _) in enumerate(answers) if damage]
        return ([], "; ".join(bad[:3])) if bad else ([value for value, _, _ in answers], "")

    def _together(self, call: Callable[[], str], damage: tuple[type[FmscaleError], ...]) -> list[list[str]]:
        """Call `call` on every rank; by rank its value, its error of the kinds `damage`, and "". Another error on any
        rank raises on every rank.
        """
        failed: FmscaleError | None = None
        own = ["", "", ""]
        try:
            own[0] = call()
        except FmscaleError as error:
            own[1 if isinstance(error, damage) else 2] = str(error)
            failed = None if own[1] else error
        answers = [own]
        if self._waits is not None:
            texts = self._waits.barrier(self._name, value=json.dumps(own), deadline=self._deadline, stop=self._stop)
            answers = [json.loads(text) for text in texts]
        if failed is not None:
            raise failed
        for rank, (_, _, problem) in enumerate(answers):
            if problem:
                raise RankError(f"rank {rank} failed: {problem.rstrip('.')}", remedy="Its log says more.")
        return answers
