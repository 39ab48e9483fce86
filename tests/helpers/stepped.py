"""Writers that stop at every request to the store, so that a test decides what happens to each of them.

A process of the test is a thread that stops at each backend call: exactly one thread runs at any time, so interleavings
are reproducible. The fate of a request is in FATES.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Semaphore, Thread
from typing import Any

from fmscale.errors import StoreError, StoreUnavailable
from fmscale.store.backends.protocol import Backend

FATES = ("ok", "lost_request", "lost_response", "twice", "late", "killed_before", "killed_after")
TIMEOUT = 60.0


class Killed(BaseException):
    """The process was killed at this request."""


class Process:
    """One process of the test: a backend whose calls wait for `step`, and the operation that it runs."""

    def __init__(self, store: Backend) -> None:
        self.store = _Gate(self)
        self.call: str | None = None
        """Name of the request that waits for its fate; None when the operation has ended."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.killed = False
        self.late: list[Callable[[], object]] = []
        """Requests that arrive after their sender abandoned them; their answers are lost."""
        self.inner = store
        self._fate = ""
        self._stopped = Semaphore(0)
        self._go = Semaphore(0)

    def start(self, work: Callable[[], object]) -> None:
        """Run `work` up to its first request."""
        assert self.call is None
        assert not self.killed
        self.result = self.error = None
        Thread(target=self._run, args=(work,), daemon=True).start()
        self._wait()

    def step(self, fate: str = "ok") -> None:
        """Let the waiting request meet its fate, and run up to the next request."""
        assert self.call is not None, f"the operation has ended: {self.result!r} {self.error!r}"
        self._fate = fate
        self._go.release()
        self._wait()

    def finish(self) -> None:
        """Run the operation to its end without any more faults."""
        while self.call is not None:
            self.step()

    def at_put(self) -> bool:
        """True if the waiting request would create a log entry."""
        return self.call == "put_if_absent"

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=TIMEOUT), "the operation hangs between two requests"

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self.result = work()
        except BaseException as error:  # also Killed: the test looks at what ended the operation
            self.error = error
        self.call = None
        self._stopped.release()

    def meet(self, name: str, effect: Callable[[], Any]) -> Any:
        """Wait for the fate and apply it; the gate calls this in the operation's thread."""
        self.call = name
        self._stopped.release()
        self._go.acquire()
        if self._fate == "killed_before":
            self.killed = True
            raise Killed
        if self._fate == "lost_request":
            raise StoreUnavailable("the request was lost", found=name)
        if self._fate == "late":
            self.late.append(lambda: _unheard(effect))
            raise StoreUnavailable("the request was slow", found=name)
        if self._fate in ("killed_after", "lost_response"):
            _unheard(effect)
            if self._fate == "lost_response":
                raise StoreUnavailable("the response was lost", found=name)
            self.killed = True
            raise Killed
        return [effect() for _ in range(2 if self._fate == "twice" else 1)][-1]


def _unheard(effect: Callable[[], object]) -> None:
    with suppress(StoreError):
        effect()


class _Gate:
    """A Backend that asks the process's fate at every call."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._process.inner, name)
        if not callable(method):
            return method

        def call(*args: Any) -> Any:
            def effect() -> Any:
                result = method(*args)
                return list(result) if name == "list_objects" else result

            return self._process.meet(name, effect)

        return call
