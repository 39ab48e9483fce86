"""A backend that fails on purpose, by a plan: for state machines and crash campaigns over the log.

    faulty = FaultyBackend(inner, {3: Fault.LOST, 7: Fault.CRASH_AFTER})   # by number of the call, from 0
    faulty.inject(Fault.UNAVAILABLE, "put_if_absent")                      # the next such call

Every method of the protocol is one call. A `Crash` is a BaseException, so that no `except Exception` in the code under
test catches it. Every later call also raises Crash, as in a dead process: continue with a new FaultyBackend over the
same inner backend.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from fmscale.errors import StoreUnavailable
from fmscale.store.backends.protocol import Backend, ObjectInfo

T = TypeVar("T")

WRITES = frozenset({"put", "put_file", "put_if_absent", "delete"})


class Crash(BaseException):
    """Death of the process at this call."""


class Fault(Enum):
    """Fate of one call."""

    UNAVAILABLE = "the request never arrives; StoreUnavailable"
    LOST = "the request takes effect, its answer is lost; StoreUnavailable"
    LATE = "StoreUnavailable now; the request takes effect just before the next write, or at settle()"
    DUPLICATE = "the request arrives twice, the first answer is returned"
    DUPLICATE_LAST = "the request arrives twice, the second answer is returned (a repeating proxy)"
    CRASH_BEFORE = "the process dies before the request is sent"
    CRASH_AFTER = "the process dies after the request took effect, before it sees the answer"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call."""

    number: int
    """Number from 0, over all methods of this backend."""
    method: str
    """Name of the method of the protocol."""
    key: str
    """Its key or prefix."""
    fault: Fault | None
    """Fault that it met."""


@dataclass
class _Waiting:
    fault: Fault
    method: str | None
    key_part: str


@dataclass
class FaultyBackend:
    """A `Backend` around another one."""

    inner: Backend
    plan: Mapping[int, Fault] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    crashed: bool = False

    def __post_init__(self) -> None:
        self.url = self.inner.url
        self.requests = self.inner.requests
        self._waiting: list[_Waiting] = []
        self._late: list[Callable[[], object]] = []
        self._lock = RLock()

    def inject(self, fault: Fault, method: str | None = None, key_part: str = "") -> None:
        """Let the next call of `method` (any if None) whose key contains `key_part` suffer `fault`."""
        with self._lock:
            self._waiting.append(_Waiting(fault, method, key_part))

    def settle(self) -> None:
        """Let delayed requests arrive now."""
        with self._lock:
            late, self._late = self._late, []
        for effect in late:
            effect()

    def get(self, key: str) -> bytes:
        return self._call("get", key, lambda: self.inner.get(key))

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        self._call("read_into", key, lambda: self.inner.read_into(key, start, *buffers))

    def read(self, key: str, start: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        self.read_into(key, start, data)
        return data

    def advise(self, key: str, start: int, length: int) -> None:
        self.inner.advise(key, start, length)

    def put(self, key: str, data: bytes | memoryview) -> None:
        held = bytes(data)
        self._call("put", key, lambda: self.inner.put(key, held))

    def put_file(self, key: str, path: Path) -> None:
        self._call("put_file", key, lambda: self.inner.put_file(key, path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._call("put_if_absent", key, lambda: self.inner.put_if_absent(key, data))

    def head(self, key: str) -> ObjectInfo:
        return self._call("head", key, lambda: self.inner.head(key))

    def exists(self, key: str) -> bool:
        return self._call("exists", key, lambda: self.inner.exists(key))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._call("list_objects", prefix, lambda: iter(list(self.inner.list_objects(prefix))))

    def list_names(self, prefix: str = "") -> list[str]:
        return self._call("list_names", prefix, lambda: self.inner.list_names(prefix))

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self.inner.delete(key))

    def local_path(self, key: str) -> Path | None:
        return self.inner.local_path(key)

    def _call(self, method: str, key: str, effect: Callable[[], T]) -> T:
        fault = self._begin(method, key)
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            if fault is Fault.CRASH_AFTER:
                effect()
            self.crashed = True
            raise Crash(f"{fault.name} of {method} {key}")
        if fault is Fault.UNAVAILABLE:
            raise _unavailable(method, key)
        if fault is Fault.LOST:
            effect()
            raise _unavailable(method, key)
        if fault is Fault.LATE:
            with self._lock:
                self._late.append(effect)
            raise _unavailable(method, key)
        answer = effect()
        if fault is Fault.DUPLICATE:
            effect()
        if fault is Fault.DUPLICATE_LAST:
            answer = effect()
        return answer

    def _begin(self, method: str, key: str) -> Fault | None:
        with self._lock:
            if self.crashed:
                raise Crash(f"{method} {key} after the crash")
            if method in WRITES:
                self.settle()
            number = len(self.calls)
            fault = self.plan.get(number)
            for one in self._waiting:
                if fault is None and one.method in (None, method) and one.key_part in key:
                    fault = one.fault
                    self._waiting.remove(one)
                    break
            if fault is Fault.LATE and method not in WRITES:
                fault = Fault.UNAVAILABLE
            self.calls.append(Call(number=number, method=method, key=key, fault=fault))
            return fault


def _unavailable(method: str, key: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store did not complete {method} of {key}", found="injected", remedy="Injected by a test."
    )


def count_calls(run: Callable[[FaultyBackend], Any], inner: Backend) -> int:
    """Number of calls that `run` makes without faults: the range for a crash at every step."""
    faulty = FaultyBackend(inner)
    run(faulty)
    return len(faulty.calls)
