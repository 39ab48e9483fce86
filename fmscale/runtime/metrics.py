"""Counters, gauges and timers of one process: names to numbers, cheap enough for the inside of a step.

One call costs below a microsecond (a lock and a dictionary). Names are those of the glossary: `data_stall`,
`ckpt_blocking`, ... A timer reports `NAME.seconds` (sum), `.count`, `.max`, `.p50` and `.p99`.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

KEPT = 1024
"""Durations of one timer that percentiles are taken over: the latest ones since the last `take`."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, interpolated; as numpy's default method.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class _Durations:
    """What one timer saw since the last take, and in all."""

    __slots__ = ("count", "latest", "longest", "seconds", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.clear()

    def clear(self) -> None:
        self.count, self.seconds, self.longest = 0, 0.0, 0.0
        self.latest: deque[float] = deque(maxlen=KEPT)


class Metrics:
    """The numbers of one process; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._timers: dict[str, _Durations] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Count: bytes read, rows delivered, failed saves."""
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + amount

    def set(self, name: str, value: float) -> None:
        """Gauge: the latest value is the one that counts, such as a queue's depth."""
        with self._lock:
            self._gauges[name] = value

    def observe(self, name: str, seconds: float) -> None:
        """Timer: one duration that was measured elsewhere."""
        with self._lock:
            timer = self._timers.get(name)
            if timer is None:
                timer = self._timers[name] = _Durations()
            timer.total += seconds
            timer.seconds += seconds
            timer.count += 1
            timer.longest = max(timer.longest, seconds)
            timer.latest.append(seconds)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Timer: how long the block takes, also if it raises."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.observe(name, time.perf_counter() - begin)

    def total(self, name: str) -> float:
        """A counter's count, or a timer's seconds, since the start; 0 for a name not seen yet."""
        with self._lock:
            timer = self._timers.get(name)
            return timer.total if timer else self._counters.get(name, 0.0)

    def take(self) -> dict[str, float]:
        """What happened since the last call: counters' increase, timers' figures, and all gauges."""
        with self._lock:
            values = dict(self._gauges)
            for name, count in self._counters.items():
                values[name] = count - self._taken.get(name, 0)
            self._taken = dict(self._counters)
            for name, timer in self._timers.items():
                values[f"{name}.seconds"] = timer.seconds
                values[f"{name}.count"] = timer.count
                if timer.latest:
                    values[f"{name}.max"] = timer.longest
                    values[f"{name}.p50"] = percentile(timer.latest, 50)
                    values[f"{name}.p99"] = percentile(timer.latest, 99)
                timer.clear()
        return values
