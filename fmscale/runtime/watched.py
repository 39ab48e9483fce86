"""States of all ranks, as their watchdogs tell them, for people: in one file of the run's folder, and in a sentence."""

import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from fmscale.errors import FormatError, ObjectNotFound
from fmscale.runtime.failure import Whereabouts
from fmscale.runtime.waits import name_ranks

FILE_NAME = "watch.json"
FORMAT_VERSION = 1
PACKAGE = f"{os.sep}fmscale{os.sep}"
COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")
WAITS = (COLLECTIVES, *(os.path.join("fmscale", "runtime", name) for name in ("collectives.py", "waits.py")))
"""Files whose code waits for other ranks."""
SHOWN = 4
"""Groups of ranks in a sentence."""


def state_of(rank: int, where: Whereabouts, worked: float) -> dict[str, Any]:
    """State of this process. `seconds` are those in its phase or step, `worked` those that `WorkTime` has counted,
    `place` is the line that its main thread is in, `seeks` is True if it lost another rank and does not know why.
    """
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "step": where.step,
        "phase": where.phase,
        "seconds": time.monotonic() - where.moved,
        "worked": worked,
        "place": _main_place(),
        "seeks": where.seeks,
    }


class Pace:
    """Lengths of the last steps, from looks at the number of the step."""

    def __init__(self) -> None:
        self._last: tuple[int | None, float] = (None, 0.0)
        self._steps: deque[float] = deque(maxlen=50)

    def count(self, step: int | None, now: float) -> None:
        """Note the step that runs at the time `now`."""
        before, then = self._last
        if step != before:
            if step is not None and before is not None and step > before:
                # A look at 40 short steps counts 40 times: else a few steps of a rank that turned slow became the pace.
                self._steps.extend([(now - then) / (step - before)] * (step - before))
            self._last = step, now

    @property
    def median(self) -> float:
        """Seconds of the median step; 0 before the first has ended."""
        return statistics.median(self._steps) if self._steps else 0.0


class WorkTime:
    """Counts the `seconds` of a phase or step in which looks found the main thread at work, and not in a wait for other
    ranks. A slow rank works while others wait for it; then all are in the collective, in which its host is slow too.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._moved, self._last = 0.0, 0.0

    def count(self, moved: float, now: float) -> None:
        """Note where the main thread is at the time `now`, in a phase or step that began at `moved`."""
        if moved != self._moved:
            self.seconds = 0.0
        frame = _main_frame()
        if frame is not None and not frame.f_code.co_filename.endswith(WAITS):
            self.seconds += now - max(moved, self._last)
        self._moved, self._last = moved, now


class Beats:
    """Looks since the ranks' states last changed: that of a living rank changes between two looks. Looks are counted,
    as a job that was suspended looks before its other ranks go on.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[Mapping[str, Any], int]] = {}

    def silence(self, states: Sequence[Mapping[str, Any]], pause: float) -> list[dict[str, Any]]:
        """The states, each with the seconds `silent` since it changed; `pause` is that between looks."""
        for state in states:
            before, looks = self._last.get(state["rank"], ({}, 0))
            self._last[state["rank"]] = state, looks + 1 if before == state else 0
        return [{**state, "silent": self._last[state["rank"]][1] * pause} for state in states]


def write_stacks(path: Path, line: str) -> str:
    """Append a line and the stacks of all threads to a file; a sentence on where they are."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{time.ctime()} {line}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:
        return f"{path} is not written: {error.strerror}"
    return f"{path} has the stacks of its threads"


def write_watched(folder: Path, states: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file of states; without room on the disk the file before stays."""
    beside = folder / f".{FILE_NAME}"
    with suppress(OSError):
        beside.write_text(json.dumps({"format_version": FORMAT_VERSION, "time": time.time(), "ranks": list(states)}))
        beside.replace(folder / FILE_NAME)


def read_watched(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Unix time of the file of states, and the state of each rank. Raises ObjectNotFound or FormatError."""
    path = folder / FILE_NAME
    try:
        found = json.loads(path.read_text())
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {found['format_version']}")
        return float(found["time"]), list(found["ranks"])
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = "Give the folder of a run, train.folder/train.run, on the machine of rank 0."
        raise ObjectNotFound("No run has told here where its ranks are", found=str(path), remedy=remedy) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        remedy = "Delete it; a run that goes on writes it again."
        raise FormatError(f"{path} has no states of ranks", found=str(error), remedy=remedy) from error


def _main_place() -> str:
    """The innermost line of fmscale that the main thread is in, such as "train/loop.py:75 run_loop", and the collective
    in which it waits there: a rank that others wait for is often in the same line, and in none.
    """
    frame = _main_frame()
    waits = frame.f_code if frame is not None and frame.f_code.co_filename.endswith(COLLECTIVES) else None
    while frame is not None and PACKAGE not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return ""
    place = f"{frame.f_code.co_filename.rpartition(PACKAGE)[2]}:{frame.f_lineno} {frame.f_code.co_name}"
    return f"{place}, in {waits.co_name}" if waits else place


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def lagging(states: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ranks that are in an earlier step than another rank."""
    steps = {state["rank"]: state["step"] or 0 for state in states}
    return [rank for rank, step in steps.items() if step < max(steps.values())]


def tell_places(states: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on where the ranks are, the smallest groups first: a rank that others wait for is elsewhere. Before it
    stands a rank that has worked for 2 s or more, and twice as long as any other.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for state in states:
        groups.setdefault((state["step"], state["phase"], state["place"]), []).append(state["rank"])
    told = []
    for (step, phase, place), ranks in sorted(groups.items(), key=lambda group: len(group[1]))[:SHOWN]:
        verb = "is" if len(ranks) == 1 else "are"
        hosts = {state["host"] for state in states if state["rank"] in ranks}
        where = f" on {hosts.pop()}" if len(hosts) == 1 else ""
        told.append(f"{name_ranks(ranks)}{where} {verb} at step {step} in {phase}" + (f", {place}" if place else ""))
    late = lagging(states)
    lag = f"{name_ranks(late)} {'lags' if len(late) == 1 else 'lag'} behind; " if late else ""
    *_, second, last = [0.0, 0.0, *sorted(state["worked"] for state in states)]
    work = [
        f"rank {state['rank']} on {state['host']} worked {last:.0f} s, and the others {second:.0f} s or less; "
        for state in states
        if state["worked"] == last >= max(2.0, 2 * second)
    ]
    return lag + "".join(work) + "; ".join(told)
