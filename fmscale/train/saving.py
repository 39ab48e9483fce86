"""Saves of a run: their steps, and the part of its state that is not in tensors."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fmscale.checkpoint.saver import Saver, SaveReport
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import StoreError
from fmscale.train.engine.protocol import Engine
from fmscale.train.session import Session


@dataclass(kw_only=True, eq=False)
class Saving:
    """Saves at the configured steps through a Saver, and counts the time that the training thread waits."""

    saver: Saver
    engine: Engine
    config: CheckpointConfig
    """Section that sets the steps of the saves."""
    meta: Callable[[int, dict[str, Any]], dict[str, Any]]
    """Facts beside the tensors, from the step and the loader's state."""
    report: Callable[..., None]
    """Takes an event of each finished save."""
    newest: Callable[[int], int]
    """Makes the ranks agree on the newest durable step."""
    before: Callable[[], None]
    """Called before each save: steps that a resume does not repeat must be on record by then."""
    best: float = math.inf
    """Lowest held-out loss so far of the set `evaluation.best`."""
    blocking_seconds: float = 0.0
    """Time that the training thread stood still for saves."""
    reports: list[SaveReport] = field(default_factory=list)
    """Outcome of every save on this rank."""
    _last_begun: int = 0
    _began_at: int = 0
    _last_time: float = field(default_factory=time.monotonic)
    _closed: bool = False

    def begin_at(self, step: int, best: float) -> None:
        """Note that the run goes on from the checkpoint after `step` steps, and the lowest held-out loss by then."""
        self.reports.clear()
        self._last_begun = self._began_at = step
        self.best = best

    def prepare(self) -> None:
        """Allocate the snapshots' memory beside the first forward, so that a lack of it shows before the first step."""
        self.saver.prepare(self.engine.pieces(save=True))

    @property
    def acknowledged(self) -> int:
        """Steps of the newest save that this rank knows to be durable, or else the steps at which the run began."""
        done = [report.step for report in self.reports if report.state == "acknowledged"]
        return max(done, default=self._began_at)

    @property
    def trouble(self) -> str:
        """Reason of the newest failure of a save; empty without a failure."""
        return next((report.reason for report in reversed(self.reports) if report.state != "acknowledged"), "")

    @property
    def clock_due(self) -> bool:
        """True if this rank's clock makes a save due. Ranks agree before they act on it."""
        limit = self.config.every_seconds
        return limit is not None and time.monotonic() - self._last_time >= limit

    def step_done(self, step: int, loader_state: dict[str, Any], *, due: bool, last: bool, score: float | None) -> None:
        """Save if the step's number or `due` demands it, at the last step, or if `score`, the held-out loss of this
        step, is the lowest so far; then report earlier saves.
        """
        better = score is not None and score < self.best
        if better and score is not None:
            self.best = score
        if last or due or better or (self.config.every and step % self.config.every == 0):
            self.save(step, loader_state, wait=last or better, score=score)
        self._tell()

    def save(self, step: int, loader_state: dict[str, Any], *, wait: bool = False, score: float | None = None) -> None:
        """Save the state after `step` steps, and return when training may go on.

        `wait` is for a run's last save and for the best, which must not be skipped while an earlier save is written.
        """
        began = time.perf_counter()
        self.before()
        meta = self.meta(step, loader_state)
        if math.isfinite(self.best):
            meta |= {"best": self.best}
        if score is not None and math.isfinite(score):
            meta |= {"score": score}
        self.saver.save(step, self.engine.pieces(save=True), meta, wait=wait)
        self._last_begun, self._last_time = step, time.monotonic()
        self.blocking_seconds += time.perf_counter() - began

    def save_before_stop(self, step: int, loader_state: dict[str, Any]) -> None:
        """Save the state after `step` steps, unless a save of this step succeeds.

        Waits for a save of this step that is under way: its outcome decides if another save is needed.
        """
        if step == self._last_begun:
            self.saver.drain(self.config.seal_seconds)
            self._tell()
            if self.newest(self.acknowledged) == step:
                return
        self.save(step, loader_state, wait=True)

    def settle(self) -> None:
        """Wait until no save is under way, and let the next refer to no other. Raises StoreError after the limit."""
        if not self.saver.drain(self.config.seal_seconds):
            raise StoreError(
                "a save is still being written, so the run cannot go back behind it",
                found=f"checkpoint.seal_seconds {self.config.seal_seconds:.0f}",
                remedy="See to the store, which `fmscale doctor` checks; the same command goes on from the newest "
                "checkpoint.",
            )
        self.saver.complete_next = True
        self._tell()

    def fence(self) -> None:
        """Wait until the copy of masters and moments is done: called right before they change."""
        began = time.perf_counter()
        self.saver.fence()
        self.blocking_seconds += time.perf_counter() - began

    def close(self, deadline: float) -> None:
        """Wait up to `deadline` seconds until all saves are durable, and end the writer."""
        if not self._closed:
            self._closed = True
            self._tell(self.saver.close(deadline))

    def _tell(self, reports: Sequence[SaveReport] = ()) -> None:
        for report in reports or self.saver.poll():
            self.reports.append(report)
            values = {name: value for name, value in asdict(report).items() if value not in ("", None, False)}
            self.report(event="checkpoint", **values)


def open_saver(session: Session, lease: int) -> Saver:
    """This rank's saver, writing under lease `lease`."""
    config = session.config
    return Saver(
        config.store.url,
        config.train.run,
        world=session.world,
        lease=lease,
        config=config.checkpoint,
        deadline=config.store.deadline,
    )
