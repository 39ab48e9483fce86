"""The node cache between real processes: one fetch, kills, stops, the limit, a full disk."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.range_lock import PATIENCE
from tests.helpers.cache_user import CHUNK, Ref, Source, read, used_bytes

ROOT = Path(__file__).parents[3]
ROOMY = 1 << 20


class User:
    """A process that uses a cache directory."""

    def __init__(self, directory: Path, limit: int, *mode: str) -> None:
        command = [sys.executable, "-m", "tests.helpers.cache_user", str(directory), str(limit), *mode]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def __enter__(self) -> "User":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()

    def wait_for(self, word: str) -> None:
        assert self.stdout.readline().strip() == word

    def go(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()

    def result(self) -> dict[str, int]:
        line = self.stdout.readline()
        assert self.process.wait() == 0
        result: dict[str, int] = json.loads(line)
        return result


def test_four_processes_of_eight_threads_fetch_each_chunk_once(tmp_path: Path) -> None:
    users = [User(tmp_path, ROOMY, "crowd") for _ in range(4)]
    for user in users:
        user.wait_for("ready")
    for user in users:
        user.go()
    fetched: Counter[str] = Counter()
    for user in users:
        with user:
            fetched.update(user.result())
    assert fetched == Counter(str(chunk) for chunk in range(64))


def test_a_killed_fetch_releases_its_chunks(tmp_path: Path) -> None:
    source = Source(Ref(digest="d" * 32, bytes=8 * CHUNK))
    cache = NodeCache(tmp_path, ROOMY)
    with User(tmp_path, ROOMY, "hang") as user:
        user.wait_for("fetching")
    read(cache, source, 0, 8)
    assert source.calls == [(0, 8)], "what it had fetched was not there for anybody"
    assert used_bytes(cache) == 8 * CHUNK


def test_a_stopped_fetch_holds_nobody_up(tmp_path: Path) -> None:
    source = Source(Ref(digest="d" * 32, bytes=8 * CHUNK))
    cache = NodeCache(tmp_path, ROOMY, patience=0.05)
    with User(tmp_path, ROOMY, "hang") as user:
        user.wait_for("fetching")
        user.process.send_signal(signal.SIGSTOP)
        read(cache, source, 0, 8)
        assert used_bytes(cache) == 0
    read(cache, source, 0, 8)
    assert used_bytes(cache) == 8 * CHUNK


HOLDER = """
import os, signal, sys
from contextlib import ExitStack
from fmscale.store.tiers.range_lock import locked
with ExitStack() as stack:
    for place in sys.argv[1:]:
        path, start = place.split(":")
        stack.enter_context(locked(path, int(start), 1, 1.0))
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_stopped_holder_delays_others_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the count of the cache and chunks of two objects: all reads together wait a little more than once."""
    sources = [Source(Ref(digest=digit * 32, bytes=8 * CHUNK)) for digit in "cde"]
    cache = NodeCache(tmp_path, ROOMY, patience=0.3)
    for source in sources:
        read(cache, source, 0, 1)
    places = [f"{path}:4" for path in sorted(tmp_path.rglob("*-*"))[:2]]
    slept: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("fmscale.store.tiers.range_lock.time.sleep", pause)
    with subprocess.Popen([sys.executable, "-c", HOLDER, *places, f"{tmp_path}/usage:{(1 << 30) + 1}"]) as holder:
        try:
            assert os.WIFSTOPPED(os.waitpid(holder.pid, os.WUNTRACED)[1])
            for _ in range(5):
                for source in sources:
                    read(cache, source, 2, 4)
            assert 0 < sum(slept) < 0.5, "15 reads, each with two locks that do not come free"
        finally:
            holder.kill()
    for source in sources:
        read(cache, source, 0, 8)
        source.calls.clear()
        read(cache, source, 0, 8)
        assert source.calls == []
    assert cache._locks._stuck == {}
    assert PATIENCE <= 2.0


def churn(directory: Path, users: int, reads: int) -> None:
    limit = 48 * CHUNK
    crowd = [User(directory, limit, "churn", str(seed), str(reads)) for seed in range(users)]
    total: Counter[str] = Counter()
    for user in crowd:
        with user:
            total.update(user.result())
    assert min(total["hit"], total["evict"], total["keep"]) > 0
    assert "error" not in total
    blocks = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
    # For each of the 4 files a page of states, and the block in which ext4 keeps more than 4 extents.
    states = 4 * 2 * 4096 + 4096
    assert blocks <= limit + states
    assert used_bytes(NodeCache(directory, limit)) <= limit


def test_the_limit_holds_over_processes_and_no_hole_is_read(tmp_path: Path) -> None:
    churn(tmp_path, users=3, reads=400)


@pytest.mark.slow
def test_the_limit_holds_for_long(tmp_path: Path) -> None:
    churn(tmp_path, users=6, reads=10_000)


@pytest.mark.slow
def test_kills_while_churning(tmp_path: Path) -> None:
    for seed in range(30):
        with User(tmp_path, 48 * CHUNK, "churn", str(seed), "1000000") as user:
            other = User(tmp_path, 48 * CHUNK, "churn", str(seed + 100), "60")
            with other:
                assert other.result()["keep"] > 0
            assert user.process.poll() is None
    churn(tmp_path, users=2, reads=200)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_passes_through(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(Ref(digest="a" * 32, bytes=128 * CHUNK))
    with caplog.at_level(logging.WARNING):
        cache = NodeCache(small_disk, 1 << 30)
        for _ in range(2):
            for first in range(0, 128, 4):
                read(cache, source, first, 4, first)
    assert cache.requests.bytes["bypass"] > 0
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert cache.requests.bytes["hit"] >= 30 * CHUNK, "what fits is kept and served"
    file = cache._file(source.ref)
    assert file is not None
    assert used_bytes(cache) == file.states().count(1) * CHUNK <= 256 << 10
    assert file.states()[124:] == bytes(4)
    before = len(source.calls)
    read(cache, source, 124, 4, 0)
    read(cache, source, 124, 4, 0)
    assert len(source.calls) == before + 1, "what is used sooner takes the place of what is used later"


def test_a_disk_that_others_filled_passes_through(small_disk: Path) -> None:
    source = Source(Ref(digest="a" * 32, bytes=128 * CHUNK))
    (small_disk / "hog").write_bytes(bytes((256 << 10) - 4096))
    cache = NodeCache(small_disk, 1 << 30)
    for _ in range(2):
        read(cache, source, 0, 8)
    assert cache.requests.bytes["bypass"] == 16 * CHUNK
    (small_disk / "hog").unlink()
    fresh = NodeCache(small_disk, 1 << 30)
    for _ in range(2):
        read(fresh, source, 0, 8)
    assert len(source.calls) == 3
