"""Real processes that append and are killed with SIGKILL at random moments, on a directory and on S3."""

import random
import select
import subprocess
import sys
from pathlib import Path

import pytest

from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store

PREFIX = "runs/killed"
ROOT = Path(__file__).parents[3]


class Committer:
    """A process that appends; reads its acknowledgements."""

    def __init__(self, url: str, name: str, count: int = 1_000_000) -> None:
        command = [sys.executable, "-m", "tests.helpers.committer", url, PREFIX, name, str(count)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.acknowledged: list[tuple[int, str]] = []
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.output = self.process.stdout
        self.input = self.process.stdin

    def wait_ready(self) -> None:
        assert self.output.readline() == b"ready\n"

    def go(self) -> None:
        self.input.write(b"go\n")
        self.input.flush()

    def read_line(self) -> bool:
        line = self.output.readline()
        if not line.endswith(b"\n"):
            return False  # the end of the pipe, or a truncated line: its entry counts as not acknowledged
        number, uuid = line.decode().split()
        self.acknowledged.append((int(number), uuid))
        return True

    def kill(self) -> None:
        """SIGKILL; then its earlier acknowledgements."""
        self.process.kill()
        while self.read_line():
            pass
        self.process.wait()
        self.input.close()
        self.output.close()


def check(url: str, acknowledged: list[tuple[int, str]]) -> None:
    """All acknowledged entries exist, all entries are whole, and the log accepts more."""
    log = Log(open_store(url), PREFIX, RUN_KINDS)
    entries = list(log.entries())
    assert len({entry.uuid for entry in entries}) == len(entries)
    for number, uuid in acknowledged:
        assert entries[number].uuid == uuid
    assert len({number for number, _ in acknowledged}) == len(acknowledged)
    assert log.append("pin", {"after": len(entries)}).number == len(entries)
    names = open_store(url).list_names(f"{PREFIX}/log")
    assert names == [f"{number:012d}.json" for number in range(len(entries) + 1)]


def campaign(url: str, kills: int, seed: int, reach: float) -> None:
    """Kill `kills` committers, two at a time, after up to 3 acknowledgements and up to `reach` seconds."""
    rng = random.Random(seed)
    acknowledged: list[tuple[int, str]] = []
    for kill in range(0, kills, 2):
        pair = [Committer(url, f"{kill}-{i}") for i in range(2)]
        for one in pair:
            one.wait_ready()
        for one in pair:
            one.go()
        for one in pair:
            for _ in range(rng.randrange(4)):
                assert one.read_line()
            # Until the next acknowledgement, but no longer than a random part of an append.
            select.select([one.output], [], [], rng.random() * reach)
            one.kill()
            acknowledged += one.acknowledged
        check(url, acknowledged)
    assert acknowledged


def test_killed_on_a_directory(tmp_path: Path) -> None:
    campaign(str(tmp_path / "store"), kills=12, seed=1, reach=0.002)


def test_killed_on_s3(s3_url: str) -> None:
    campaign(s3_url, kills=8, seed=2, reach=0.01)


@pytest.mark.slow
def test_killed_on_a_directory_long(tmp_path: Path) -> None:
    campaign(str(tmp_path / "store"), kills=120, seed=3, reach=0.002)


@pytest.mark.slow
def test_killed_on_s3_long(s3_url: str) -> None:
    campaign(s3_url, kills=80, seed=4, reach=0.01)


def race(url: str, committers: int, each: int) -> None:
    crowd = [Committer(url, str(i), each) for i in range(committers)]
    for one in crowd:
        one.wait_ready()
    for one in crowd:
        one.go()
    for one in crowd:
        while one.read_line():
            pass
        assert one.process.wait() == 0
        one.kill()
    acknowledged = [pair for one in crowd for pair in one.acknowledged]
    assert sorted(number for number, _ in acknowledged) == list(range(committers * each))
    check(url, acknowledged)


def test_processes_that_race_make_one_line(tmp_path: Path, s3_url: str) -> None:
    race(str(tmp_path / "store"), committers=4, each=10)
    race(s3_url, committers=3, each=6)


@pytest.mark.slow
def test_many_processes_that_race_make_one_line(tmp_path: Path, s3_url: str) -> None:
    race(str(tmp_path / "store"), committers=16, each=20)
    race(s3_url, committers=16, each=20)
