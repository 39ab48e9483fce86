"""A rank that hangs is ended after another's failure, hears a stop, and says where every rank is."""

import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from fmscale.errors import FormatError, ObjectNotFound, RankError
from fmscale.runtime import failure, watchdog
from fmscale.runtime.axes import Axis
from fmscale.runtime.collectives import total
from fmscale.runtime.failure import Whereabouts, first_failure, recorded
from fmscale.runtime.group import connect
from fmscale.runtime.peers import Peers, identity
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.watchdog import Watchdog
from fmscale.runtime.watched import Pace, WorkTime, lagging, read_watched, state_of, tell_places, write_watched
from fmscale.runtime.world import World, read_world
from tests.helpers.ranks import RankDied, run_ranks


def state(rank: int, step: int, phase: str = "train", place: str = "train/loop.py:80 run_loop") -> dict[str, object]:
    told = {"rank": rank, "host": "a", "step": step, "phase": phase, "seconds": 3.0, "place": place}
    return {**told, "worked": 0.0, "seeks": False}


def test_the_ranks_that_others_wait_for_are_told_first() -> None:
    states = [*(state(rank, 7) for rank in range(3)), state(3, 6, "save", "checkpoint/saver.py:9 save")]
    assert lagging(states) == [3]
    assert tell_places(states) == (
        "rank 3 lags behind; rank 3 on a is at step 6 in save, checkpoint/saver.py:9 save; "
        "ranks 0, 1, 2 on a are at step 7 in train, train/loop.py:80 run_loop"
    )
    assert tell_places([state(0, 7), state(1, 7, place="data/ahead.py:3 get")]).startswith("rank 0 on a is at")
    worked = "rank 1 on a worked 5 s, and the others 2 s or less; ranks 0, 1 on a are at step 7"
    assert tell_places([{**state(0, 7), "worked": 2.0}, {**state(1, 7), "worked": 5.0}]).startswith(worked)
    assert tell_places([{**state(0, 7), "worked": 3.0}, {**state(1, 7), "worked": 5.0}]).startswith("ranks 0, 1 on a")


def test_the_pace_is_that_of_the_steps_between_looks() -> None:
    """Two steps of 2 s and one of 6 s are seen in two looks."""
    pace = Pace()
    for step, now in ((None, 0.0), (1, 50.0), (1, 52.0), (3, 54.0), (3, 55.0), (4, 60.0)):
        pace.count(step, now)
    assert pace.median == 2.0


def test_the_work_of_a_step_is_counted_from_its_begin() -> None:
    work, seconds = WorkTime(), []
    for moved, now in ((10.0, 12.0), (10.0, 13.0), (13.5, 14.0)):
        work.count(moved, now)
        seconds.append(work.seconds)
    assert seconds == [2.0, 3.0, 0.5]


def test_states_are_one_file_and_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        read_watched(tmp_path)
    write_watched(tmp_path, [state(0, 7)])
    assert read_watched(tmp_path)[1] == [state(0, 7)]
    assert os.listdir(tmp_path) == ["watch.json"]
    for text in ("", "[]", '{"format_version": 2}', "[" * 100_000):
        (tmp_path / "watch.json").write_text(text)
        with pytest.raises(FormatError):
            read_watched(tmp_path)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was ended by signal 9 (SIGKILL), as the kernel does where memory is short"),
        ("os._exit(3)", "ended with status 3"),
    ],
)
def test_the_end_of_a_process_of_this_machine_is_told_by_its_status(end: str, words: str) -> None:
    code = f"import os; from fmscale.runtime.peers import identity; print(identity(), flush=True); input(); {end}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin
        assert other.stdout
        peers = Peers(0, [identity(), other.stdout.readline().decode()])
        other.stdin.write(b"\n")
        other.stdin.close()
        select.select(peers.descriptors, [], [], 30)
        assert peers.end(peers.descriptors[0]) == f"rank 1 on {os.uname().nodename} (process {other.pid}) {words}"
    assert Peers(0, [identity(), json.dumps([*json.loads(identity())[:2], other.pid])]).gone
    os.close(peers.descriptors[0])


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The watchdog of rank 0 of two, which looks often, and whose end of the process is an event."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.05)
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    store, where, world = HashStore(), Whereabouts(phase="train", step=7), World(world_size=2)
    store.set("watch/1", json.dumps(state(1, 6)))
    dog = Watchdog(store, world, where, tmp_path, StopFlag(), limit=60.0)
    yield SimpleNamespace(dog=dog, where=where, folder=tmp_path, ended=ended, waits=HostWaits(store, world))
    dog.close()


def test_a_step_that_does_not_end_is_explained(watched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.where.moved -= 61.0
    told: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(watchdog.logger, "warning", lambda form, *values: told.put(form % values))
    watched.dog.start([identity(), "[null, null, null]"])
    line = told.get(timeout=30)
    assert line.startswith("rank 0: no end of train at step 7 for ")
    assert "rank 1 lags behind; " in line
    stacks = (watched.folder / "stacks-rank00000.txt").read_text()
    assert "rank 1 lags behind; " in stacks
    assert stacks.count("(most recent call first)") >= 2
    assert [one["rank"] for one in read_watched(watched.folder)[1]] == [0, 1]


def test_a_step_that_takes_ten_times_as_long_is_told_with_where_the_ranks_are(
    watched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(watchdog.logger, "warning", lambda form, *values: told.append(form % values))
    for took in (4.1, 6.0, 3.9, 8.3):
        watched.dog._tell_slow(took, 2.0)
    assert [line.partition(",")[0] for line in told] == ["step 7 takes 4 s so far", "step 7 takes 8 s so far"]
    assert "0.20 s before" in told[0]
    assert "rank 1 on a is at step 6" in told[0]


def test_a_rank_that_tells_nothing_any_more_is_reported(watched: SimpleNamespace) -> None:
    watched.dog._limit = 0.1
    watched.dog.start([identity(), "[null, null, null]"])
    assert watched.ended.wait(30)
    assert "rank 1 on a told nothing for " in watched.waits.failure()
    assert {one["rank"]: one["silent"] > 0 for one in read_watched(watched.folder)[1]} == {0: False, 1: True}


def test_a_silent_rank_is_named_soon_after_a_lost_connection(
    watched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that lost a connection seeks the cause; else silence counts after half of 60 s."""
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(failure, "TOLD_SECONDS", 0.0)
    watched.dog.start([identity(), "[null, null, null]"])
    error = RuntimeError("Connection reset by peer")
    lost = pytest.raises(RankError, match="lost another rank: rank 1 on a told nothing for ")
    with lost as caught, recorded(watched.folder, World(world_size=2), watched.where, watched.waits):
        raise error
    assert caught.value.__cause__ is error


SERVER = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_rank_whose_store_gives_no_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the link is down. Its main thread has failed, and waits to tell so."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.05)
    ended, where, world = threading.Event(), Whereabouts(phase="train"), World(rank=1, world_size=2, master=("n1", 1))
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        store = TCPStore("127.0.0.1", int(server.stdout.readline()), is_master=False, timeout=timedelta(seconds=60))
        store.set("watch/0", json.dumps(state(0, 7)))
        dog = Watchdog(store, world, where, tmp_path, StopFlag(), limit=0.2)
        try:
            server.send_signal(signal.SIGSTOP)
            where.recorded = ValueError("its own")
            dog.start(["[null, null, null]", identity()])
            assert ended.wait(30)
            assert where.lost.startswith("the store on n1, which rank 0 or its launcher serves, gave no answer for ")
        finally:
            server.kill()
            dog.close()


def test_after_a_failure_a_rank_that_goes_on_is_ended_with_whose_it_was(watched: SimpleNamespace) -> None:
    watched.waits.report("rank 1 on b failed in train: No disk")
    watched.dog.start([identity(), "[null, null, null]"])
    assert watched.ended.wait(30)
    report = first_failure(watched.folder)
    assert report is not None
    assert (report["type"], report["cause"]) == ("RankError", "rank 0 ends, as rank 1 on b failed in train: No disk")


def test_a_rank_that_is_ending_is_left_alone(watched: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.waits.report("rank 1 on b failed in train: No disk")
    watched.where.recorded = ValueError("its own")
    turned = threading.Semaphore(0)
    monkeypatch.setattr(watchdog.Watchdog, "_tell_state", lambda self: turned.release())
    watched.dog.start([identity(), "[null, null, null]"])
    for _ in range(20):  # 20 looks of 0.01 s: the grace is over
        assert turned.acquire(timeout=30)
    watched.dog._end("by itself")
    assert not watched.ended.is_set()


def deaf(rank: int, size: int, folder: str) -> None:
    """Rank 0 waits in gloo for rank 1, which waits for the end of rank 0; rank 0 is told to stop."""
    world = read_world(os.environ)
    store = connect(world)
    if rank:
        distributed.recv(torch.zeros(()), src=0)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "LOOK_SECONDS", 0.01)
        patch.setattr(watchdog, "GRACE_SECONDS", 0.1)
        signal.signal(signal.SIGTERM, lambda *_: None)
        where = Whereabouts(phase="building the model")
        dog = Watchdog(store, World(), where, Path(folder), StopFlag(), limit=60.0)
        dog.start([identity()])
        threading.Thread(target=stop_in_a_collective, args=(where,), daemon=True).start()
        total(torch.zeros(1), Axis(size=size, rank=rank))


def stop_in_a_collective(where: Whereabouts) -> None:
    while not state_of(0, where, 0.0)["place"].endswith(" total, in all_reduce"):
        time.sleep(0.01)
    work = WorkTime()
    work.count(1.0, 9.0)
    if work.seconds == 0.0:  # it waits, and does not work
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_rank_in_a_call_that_does_not_return_obeys_a_stop(tmp_path: Path) -> None:
    with pytest.raises(RankDied) as died:
        run_ranks(deaf, 2, str(tmp_path))
    assert (died.value.rank, died.value.status) == (0, watchdog.STATUS)
    report = first_failure(tmp_path)
    assert report is not None
    assert "told to stop by SIGTERM, and is in a call that does not return" in report["cause"]
    assert (report["rank"], report["phase"]) == (0, "building the model")
    assert re.search(r"collectives\.py:\d+ total, in all_reduce", (tmp_path / "stacks-rank00000.txt").read_text())
