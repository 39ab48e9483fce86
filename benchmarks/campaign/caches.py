"""Random acts on a node cache under two processes that read through it."""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from benchmarks.campaign.outcome import Outcome
from benchmarks.harness import ROOT
from fmscale.store.open import open_store
from fmscale.store.tiers.range_lock import PATIENCE
from tests.helpers.s3_server import die_with_parent
from tests.helpers.segments import documents, write_segment
from tests.store.tiers.test_cache_damage import cut, cut_and_grown, half, zeroed_header
from tests.store.tiers.test_cache_processes import HOLDER

SEGMENTS, TOKENS = 4, 200_000
"""1.6 MB of tokens."""
LIMIT = 1 << 20
"""Bytes of the cache: below the data, so that readers evict all the time."""
SILENCE = 30.0
"""Seconds without a line after which a reader hangs on a busy machine."""
BOUND = 1.5
"""Most patience of a read: all of it once, and a twentieth for each further lock while the first is held."""


class Reader:
    """A reading process and its lines."""

    def __init__(self, words: list[str], segments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.campaign.reader", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,
            bufsize=0,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdout: IO[bytes] = self.process.stdout
        self.process.stdin.write(segments.encode() + b"\n")
        self._rest = b""
        self.longest = 0.0
        self.hit = 0

    def follow(self, lines: int) -> tuple[str, str]:
        """Wait for some lines; fault and reason."""
        while lines > 0:
            if not select.select([self.stdout], [], [], SILENCE)[0]:
                return "hung", f"a reader said nothing for {SILENCE:.0f} s"
            if not (data := os.read(self.stdout.fileno(), 1 << 16)):
                assert self.process.stderr
                return "crashed", f"a reader ended: {self.process.stderr.read().decode()[-400:]}"
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                said = json.loads(line)
                lines -= 1
                self.longest, self.hit = max(self.longest, said["longest"]), said["hit"]
                if said["wrong"]:
                    return "mixed", f"{said['wrong']} reads with wrong bytes"
        return "", ""

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()


class Pair:
    """The cache, and two processes that read through it."""

    def __init__(self, folder: Path, seed: int, patience: float) -> None:
        self.chance, self.patience = random.Random(seed), patience
        self.cache = folder / "cache"
        store = open_store(str(folder / "store"))
        places = []
        for number in range(SEGMENTS):
            seal = write_segment(store, f"p{number}", documents([TOKENS], seed=number))
            places.append(json.dumps([f"p{number}", seal.digest], separators=(",", ":")))
        self._words = [store.url, str(self.cache), str(LIMIT), str(patience)]
        self._segments = " ".join(places)
        self._started = 0
        self.readers = [self.start(), self.start()]

    def start(self) -> Reader:
        """Another reader."""
        self._started += 1
        return Reader([*self._words, str(self._started)], self._segments)

    def files(self) -> list[Path]:
        """The cache's files."""
        return sorted(path for path in self.cache.rglob("*-*") if path.is_file())

    def follow(self, lines: int = 3) -> tuple[str, str]:
        """Wait until both readers have gone on; fault and reason."""
        for reader in self.readers:
            fault, reason = reader.follow(lines)
            if fault:
                return fault, reason
            if reader.longest > BOUND * self.patience:
                longest, reader.longest = reader.longest, 0.0
                return "hung", f"a read waited {longest:.2f} s for locks, the patience is {self.patience} s"
        return "", ""

    def close(self) -> None:
        """End the readers."""
        for reader in self.readers:
            reader.kill()


def damage_file(pair: Pair) -> tuple[str, str]:
    """Cut, grow, zero or delete a file."""
    with suppress(FileNotFoundError, IndexError):
        pair.chance.choice((cut, cut_and_grown, half, zeroed_header, os.unlink))(pair.chance.choice(pair.files()))
    return pair.follow()


def damage_count(pair: Pair) -> tuple[str, str]:
    """Cut the file that counts the bytes in use, or make it large."""
    with suppress(FileNotFoundError):
        (pair.cache / "usage").write_bytes(pair.chance.choice((b"", b"\xff" * 8 + bytes(8), bytes(3))))
    return pair.follow()


def remove_folder(pair: Pair) -> tuple[str, str]:
    """Remove a folder of the cache, or all of it."""
    folders = [pair.cache, *(path for path in pair.cache.glob("*") if path.is_dir())]
    shutil.rmtree(pair.chance.choice(folders), ignore_errors=True)
    return pair.follow()


def stop_holder(pair: Pair) -> tuple[str, str]:
    """Stop a process that holds the count and some chunks, let both readers go on, and kill it."""
    places = [f"{path}:{pair.chance.randrange(20)}" for path in pair.files()[:2]]
    places += [f"{pair.cache}/usage:{(1 << 30) + 1}"] if pair.chance.random() < 0.5 else []
    command = [sys.executable, "-c", HOLDER, *places]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent) as holder:
        with suppress(ChildProcessError):  # it ended: another process keeps a lock that it wants
            os.waitpid(holder.pid, os.WUNTRACED)
        fault = pair.follow(5)
        with suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGKILL)
    return fault


def stop_reader(pair: Pair) -> tuple[str, str]:
    """Stop a reader at a random moment; the other goes on; then both."""
    stopped, other = pair.chance.sample(pair.readers, 2)
    stopped.process.send_signal(signal.SIGSTOP)
    fault = other.follow(5)
    stopped.process.send_signal(signal.SIGCONT)
    return fault if fault[0] else pair.follow()


def kill_reader(pair: Pair) -> tuple[str, str]:
    """Kill a reader at a random moment, and start another in its place."""
    number = pair.chance.randrange(2)
    time.sleep(pair.chance.uniform(0, 0.01))  # a random moment
    pair.readers[number].kill()
    pair.readers[number] = pair.start()
    return pair.follow()


def fill(pair: Pair) -> tuple[str, str]:
    """A third process reads until the cache was full; the cache stays within its limit."""
    third = pair.start()
    try:
        fault = third.follow(15)
        blocks = 0
        for path in pair.files():
            with suppress(FileNotFoundError):
                blocks += path.stat().st_blocks * 512
        # For each file two pages of states and the block of its extents; a chunk that each process writes.
        most = LIMIT + SEGMENTS * 3 * 4096 + 3 * (1 << 14)
        if not fault[0] and blocks > most:
            fault = "lost", f"the cache has {blocks} bytes, at most {most} are allowed"
    finally:
        third.kill()
    return fault if fault[0] else pair.follow()


ACTS: list[Callable[[Pair], tuple[str, str]]] = [
    *(damage_file, damage_file, damage_file, damage_count, remove_folder),
    *(stop_holder, stop_reader, kill_reader, fill),
]


def cache_acts(folder: Path, target: int, seed: int, patience: float = PATIENCE) -> Iterator[Outcome]:
    """Every byte is right, no reader ends, and no read waits longer than promised."""
    pair = Pair(folder, seed, patience)
    try:
        for number in range(target):
            # Each kind in turn, and then at random.
            act = ACTS[number] if number < len(ACTS) else pair.chance.choice(ACTS)
            fault, reason = pair.follow(1) if number == 0 else ("", "")
            if not fault:
                fault, reason = act(pair)
            yield Outcome(fault=fault, reason=f"act {number}, {act.__name__}, seed {seed}: {reason}")
            if fault in ("hung", "crashed"):
                pair.close()
                pair.readers = [pair.start(), pair.start()]
    finally:
        pair.close()
    hits = sum(reader.hit for reader in pair.readers)
    if not hits:
        yield Outcome(count=0, fault="lost", reason="no read was served by the cache")
