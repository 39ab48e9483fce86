"""A stop from outside, obeyed between steps: SIGTERM, SIGUSR1, Ctrl-C, or a deadline.

The handler only sets a flag, which every loop polls. Ranks get a signal at different moments, so they exchange their
reasons before each step and stop together (`collectives.py`).
"""

import os
import signal
import time
from contextlib import suppress
from enum import IntEnum
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
HEARD = b"\nSIGINT: saves and ends after this step or the next; once more ends without\n"


class Stop(IntEnum):
    """Reason to stop; ranks exchange the numbers, and the largest wins."""

    NO = 0
    DEADLINE = 1
    """The run's time is up."""
    SIGUSR1 = 2
    """The scheduler says that time is nearly up."""
    SIGTERM = 3
    """The scheduler is about to kill the job."""
    SIGINT = 4
    """Ctrl-C."""


class StopFlag:
    """Flag that a signal or the clock sets, and that loops poll between steps.

    `seconds` is the time from now that the run may take. Signals are handled from `install` until `remove`.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._signalled = Stop.NO
        self._alone = False
        self._before: dict[int, object] = {}

    def install(self, *, alone: bool = False) -> "StopFlag":
        """Handle the stop signals (main thread only). An ignored SIGINT stays ignored, as behind a shell's `&`.

        `alone` means that no launcher passes on a SIGINT that the terminal has sent already: a second SIGINT then
        interrupts. Forked children ignore the signals: the parent decides when its helpers end, and a loader's child
        that died of SIGTERM would fail the save it is part of.
        """
        self._alone = alone
        for number in STOP_SIGNALS:
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        os.register_at_fork(after_in_child=lambda: ignore_stop_signals() if self._before else None)
        return self

    def remove(self) -> None:
        """Restore the handlers from before `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    @property
    def reason(self) -> Stop:
        """Reason to stop, or Stop.NO. A signal outranks the deadline."""
        if self._signalled:
            return self._signalled
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return Stop.DEADLINE
        return Stop.NO

    def __bool__(self) -> bool:
        return self.reason is not Stop.NO

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = max(self._signalled, Stop[signal.Signals(number).name])
        if number == signal.SIGINT and self._alone:
            signal.signal(number, signal.default_int_handler)
            with suppress(OSError):
                # not by the log, which this handler may have interrupted half-way
                os.write(2, HEARD)


def ignore_stop_signals() -> None:
    """Ignore the stop signals in this process: the first call in a spawned helper process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
