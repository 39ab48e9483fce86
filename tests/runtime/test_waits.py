"""Ranks that meet and wait for each other: in real processes, by name, with a time limit."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from fmscale.errors import ConfigError, RankError
from fmscale.runtime import waits
from fmscale.runtime.group import connect
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.tcp_store import serve_store
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World, read_world
from tests.helpers.ranks import run_ranks


def rank_waits() -> HostWaits:
    world = read_world(os.environ)
    return HostWaits(connect(world, deadline=10), world)


def exchange(rank: int, size: int) -> list[list[str]]:
    waits = rank_waits()
    return [waits.barrier("plan", value=f"{rank}/{use}", deadline=10) for use in range(3)]


def follow_rank_zero(rank: int, size: int) -> list[str]:
    waits = rank_waits()
    heard = []
    for use in range(3):
        if rank == 0:
            waits.arrive("ingest", str(use))
        else:
            heard += waits.wait("ingest", ranks=[0], deadline=10)
    return heard


def zero_never_comes(rank: int, size: int) -> None:
    if rank:
        waits = rank_waits()
        waits.arrive("ingest")
        waits.wait("ingest", ranks=[0, 1], deadline=0.2)


def rank_one_fails(rank: int, size: int) -> float:
    waits = rank_waits()
    begin = time.monotonic()
    if rank == 1:
        waits.fail(ConfigError("No disk", found="s3://me:hunter22@host/b"), "restore")
        return 0.0
    with pytest.raises(RankError) as caught:
        waits.barrier("restore", deadline=60)
    assert f"rank {rank} waited " in caught.value.cause
    assert "s in restore when rank 1 on " in caught.value.cause
    assert "failed in restore: No disk: found 's3://***@host/b'" in caught.value.cause
    return time.monotonic() - begin


def server_goes(rank: int, size: int) -> None:
    port = ""
    if rank == 0:
        own = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = str(own.port)
    pool = rank_waits()
    port = pool.barrier("port", value=port)[0]
    if rank == 0:
        pool.wait("connected", ranks=[1])
        del own
        return
    world = World(rank=1, world_size=2, master=("127.0.0.1", int(port)))
    waits = HostWaits(connect(world), world)
    pool.arrive("connected")
    try:
        waits.wait("save", ranks=[0], deadline=30)
    finally:
        waits.fail(RankError("nobody is there to hear it"), "save")


def test_values_are_exchanged_and_names_can_be_used_again() -> None:
    assert run_ranks(exchange, 3) == [[[f"{r}/{use}" for r in range(3)] for use in range(3)]] * 3
    assert run_ranks(follow_rank_zero, 3) == [[], ["0", "1", "2"], ["0", "1", "2"]]


def test_a_wait_that_is_too_long_says_who_for_whom_and_where() -> None:
    with pytest.raises(RankError, match=r"waited \d+ s for rank 0 in ingest") as caught:
        run_ranks(zero_never_comes, 2)
    assert "Look at the log of rank 0;" in caught.value.remedy


def test_a_failure_ends_the_waits_of_the_others() -> None:
    assert max(run_ranks(rank_one_fails, 3)) < 10


def test_a_rank_zero_that_goes_ends_the_waits() -> None:
    with pytest.raises(RankError, match="rank 1 lost its connection to rank 0 while it waited in save"):
        run_ranks(server_goes, 2)


def test_a_process_alone_waits_for_nobody_and_needs_no_port() -> None:
    world = World()
    waits = HostWaits(connect(world), world)
    assert waits.barrier("plan", value="x") == ["x"]


def test_a_long_wait_is_logged_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    patient = HostWaits(store, World(rank=3, world_size=4), notice_seconds=0.05)
    late = HostWaits(store, World(rank=0, world_size=4))
    logged = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " waits " in record.getMessage():
                logged.set()

    logging.getLogger("fmscale.runtime.waits").addHandler(Told())
    waiter = threading.Thread(target=patient.wait, args=("ingest",), kwargs={"ranks": [0], "deadline": 20})
    waiter.start()
    assert logged.wait(10)
    late.arrive("ingest")
    waiter.join(10)
    assert caplog.records[0].getMessage().endswith(" s for rank 0 in ingest")
    assert caplog.records[-1].getMessage().startswith("rank 3 waited ")


def test_a_stop_ends_a_wait_that_heeds_it(told: StopFlag) -> None:
    store = HashStore()
    one, other = (HostWaits(store, World(rank=rank, world_size=2)) for rank in range(2))
    with pytest.raises(RankError, match=r"waited \d+ s for rank 1 in meeting.* told to stop \(SIGTERM\)"):
        one.barrier("meeting", stop=told)
    assert other.barrier("meeting") == ["", ""]
    assert one.barrier("meeting", stop=told) == ["", ""]


def test_ranks_that_were_only_slower_are_still_met_after_a_stop(
    told: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "STOP_SECONDS", 30.0)
    store = HashStore()
    one, other = (HostWaits(store, World(rank=rank, world_size=2)) for rank in range(2))
    late = threading.Timer(0.3, other.barrier, ("meeting",))
    late.start()
    assert one.barrier("meeting", stop=told) == ["", ""]


class Counted:
    """A rank's connection to a store, which counts its requests; sleeps last until others come on."""

    def __init__(self, store: Any, everyone: "list[Counted]", size: int) -> None:
        self._store, self._everyone, self._size = store, everyone, size
        self.requests = self.appended = 0
        everyone.append(self)

    def clone(self) -> "Counted":
        """Another connection of the same rank."""
        return Counted(self._store.clone(), self._everyone, self._size)

    def __getattr__(self, name: str) -> Any:
        if name == "set_timeout":
            return self._store.set_timeout

        def counted(*values: Any) -> Any:
            answer = getattr(self._store, name)(*values)
            with CHANGE:
                self.requests += 1
                self.appended += name == "append"
                CHANGE.notify_all()
            return answer

        return counted

    def sleep(self, _: float) -> None:
        """Wait until a look finds its value: all have arrived."""
        uses = self.appended

        def ready() -> bool:
            return sum(one.appended for one in self._everyone) >= uses * self._size

        with CHANGE:
            assert CHANGE.wait_for(ready, 30)


CHANGE = threading.Condition()


def connections(kind: str, size: int) -> list[Any]:
    """A connection for each rank to a store of its own."""
    if kind == "hash":
        return [HashStore()] * size
    # torch's own server listens by IPv6 too, and looks up each peer's name, which is then not in /etc/hosts.
    server = serve_store("127.0.0.1", 0, 60.0)
    return [server, *(TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(size - 1))]


def together(size: int, call: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))


@pytest.mark.parametrize(("kind", "size"), [("hash", 2), ("hash", 64), ("tcp", 2), ("tcp", 16)])
def test_a_barrier_sends_two_requests_a_rank_and_some_of_rank_zero(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone: list[Counted] = []
    ranks = [
        HostWaits(Counted(store, everyone, size), World(rank=rank, world_size=size))  # type: ignore[arg-type]
        for rank, store in enumerate(connections(kind, size))
    ]
    mine = threading.local()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: everyone[mine.rank].sleep(seconds))
    monkeypatch.setattr(waits, "time", clock)

    def meet(rank: int) -> list[str]:
        mine.rank = rank
        return ranks[rank].barrier("plan", value=f"{rank} of {size}")

    for uses in (1, 2):
        assert together(size, meet) == [[f"{rank} of {size}" for rank in range(size)]] * size
        assert sum(one.requests for one in everyone) <= (2 * size + 4) * uses


def test_ranks_that_wait_for_a_late_rank_send_no_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 looks for it, and the others wait in the store."""
    size, slept, late = 16, [0], threading.Event()
    everyone: list[Counted] = []
    monkeypatch.setattr(waits, "HEED_A_RANK", 60.0)
    ranks = [
        HostWaits(Counted(store, everyone, size), World(rank=rank, world_size=size))  # type: ignore[arg-type]
        for rank, store in enumerate(connections("tcp", size))
    ]

    def sleep(_: float) -> None:
        slept[0] += 1
        if slept[0] >= 20 and sum(one.appended for one in everyone) == size - 1:
            late.set()
        late.wait(0.01)

    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))

    def meet(rank: int) -> list[str]:
        if rank == size - 1:
            assert late.wait(30)
        return ranks[rank].barrier("plan")

    assert together(size, meet) == [[""] * size] * size
    assert sum(one.requests for one in everyone[1:]) == 2 * (size - 1)


def test_ranks_that_another_rank_collects_for_name_the_missing_and_hear_of_a_failure() -> None:
    size, store = 12, HashStore()

    def meet(rank: int, name: str, deadline: float) -> str:
        if rank in (3, 7):
            return ""
        with pytest.raises(RankError) as caught:
            HostWaits(store, World(rank=rank, world_size=size)).barrier(name, deadline=deadline)
        return caught.value.cause

    missed = together(size, lambda rank: meet(rank, "plan", 1.0))
    assert all(re.search(r"waited \d+ s for ranks 3, 7 in plan$", cause) for cause in missed if cause), missed
    HostWaits(store, World(rank=7, world_size=size)).fail(ConfigError("No disk"), "restore")
    heard = together(size, lambda rank: meet(rank, "restore", 60.0))
    assert all("failed in restore: No disk" in cause for cause in heard if cause), heard


def test_rank_zero_parts_last_and_waits_for_no_rank_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    store, order, clock = HashStore(), list[int](), [0.0]
    ranks = [HostWaits(store, World(rank=rank, world_size=3)) for rank in range(3)]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if len(order) < 2:
            order.append(len(order) + 1)
            ranks[order[-1]].part()

    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    ranks[0].part()
    assert order == [1, 2]
    alone, began = HostWaits(HashStore(), World(rank=0, world_size=2)), clock[0]
    alone.part()
    assert clock[0] - began >= waits.STOP_SECONDS
