"""Not slower: the code of this checkout beside that of an earlier commit, in interleaved pairs.

    git worktree add /tmp/before COMMIT && make -C /tmp/before .venv/.installed
    python -m benchmarks.pairs loader --before /tmp/before

Works: `loader` delivers 2,048 batches of 8 rows from units that do not fit into memory (W1), `loader-in-memory` 4,096
batches from units that do, `first-batch` starts a process up to its first batch (W3), `train` takes three steps of a
model of 4.2 M parameters (T1, T2), `ingest` and `ingest-records` read 48 MB of JSON Lines and Parquet into a new store,
and `ingest-s3` reads the same from an S3 server whose requests take 20 ms. Both sides run the benchmarks of their own
checkout (for ingest those of this checkout) and read the same files. Each pair gives the ratio of CPU-seconds, and of
wall time, before to after: above 1 this checkout is faster. Printed are
the medians, and the 95 % interval of the median ratio by bootstrap; DEVELOPERS.md says how it is judged.
"""

import argparse
import inspect
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

ROW_TOKENS, ROWS = 4097, 16384
"""Of the corpus: 134 MB of uint16 with the frequencies of words in a text."""
MEMORY = {"loader": 96 * 2**20, "loader-in-memory": 2**29, "first-batch": 2**28}
WINDOW = {"loader": 512, "loader-in-memory": 512, "first-batch": 128}
BATCHES = {"loader": 2048, "loader-in-memory": 4096}
TRAIN_STEPS = 3
INGEST = ("ingest", "ingest-records", "ingest-s3")
WORKS = ("first-batch", *INGEST, "loader", "loader-in-memory", "train")
RESAMPLES = 10_000


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds and seconds of a call, children included."""
    began, used = time.perf_counter(), _cpu_seconds()
    work()
    return _cpu_seconds() - used, time.perf_counter() - began


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def serve(work: str, folder: Path) -> None:
    """One side: run the work once for each line of standard input, and print its CPU-seconds and seconds.

    Runs in the side's checkout, so it imports that checkout's benchmarks.
    """
    sys.path.insert(0, os.getcwd())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the trainer's own output is none of the answers

    def answer(run: Callable[[], object], *_: Any) -> None:
        run()
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            print(*spent(run), file=answers, flush=True)

    if work in INGEST:
        sys.path.insert(1, str(Path(__file__).resolve().parent))
        from ingest_pairs import job

        answer(job(work, folder))
        return
    if work == "train":
        from benchmarks import train_pairs

        train_pairs.pairs = answer  # type: ignore[assignment]
        # A checkout from before T4 measures no foreign trainer.
        alone = {"foreign": False} if "foreign" in inspect.signature(train_pairs.main).parameters else {}
        train_pairs.main(folder / f"train-{os.getpid()}", 1, TRAIN_STEPS, **alone)
        return
    import torch

    torch.set_num_threads(1)
    if work == "first-batch":
        print(*spent(lambda: next(_batches(work, folder))), file=answers, flush=True)
        answers.flush()
        os._exit(0)  # the end of its threads is no part of a first batch
    feed = _batches(work, folder)

    def deliver() -> None:
        for _ in range(BATCHES[work]):
            batch = next(feed)
            int(batch[0, 0]), int(batch[-1, -1])

    answer(deliver)


def _batches(work: str, folder: Path) -> Iterator[Any]:
    from benchmarks.peers import ours

    return ours.feed(folder / "corpus", str(folder / "store"), None, MEMORY[work], WINDOW[work])


def prepare(folder: Path) -> None:
    """Write the corpus and its dataset. Runs in the earlier checkout: its formats are read by all later code."""
    sys.path.insert(0, os.getcwd())
    import numpy as np

    from benchmarks.peers.ours import prepare as write

    tokens = np.random.default_rng(0).zipf(1.3, ROW_TOKENS * ROWS) % 50_000
    tokens.astype(np.uint16).tofile(folder / "corpus")
    (folder / "store").mkdir()
    write(folder / "corpus", folder / "store")


class Side:
    """A checkout's process that does the work when it is asked; a process for each call if the work is a start."""

    def __init__(self, work: str, checkout: Path, folder: Path) -> None:
        python = str(checkout / ".venv/bin/python")
        arguments = [python, str(Path(__file__).resolve()), work, "--serve", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._start = partial(
            subprocess.Popen, arguments, cwd=checkout, env=environment, stdin=-1, stdout=-1, text=True, bufsize=1
        )
        self._process: subprocess.Popen[str] | None = None
        if work != "first-batch":
            self._process = self._start()
            self._read(self._process)

    def run(self) -> tuple[float, float]:
        """CPU-seconds and seconds of the work, once."""
        if self._process is None:
            with self._start() as process:
                return self._read(process)
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        return self._read(self._process)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _read(self, process: "subprocess.Popen[str]") -> tuple[float, float]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{process.args} ended with status {process.wait()}")
        cpu, _, wall = line.partition(" ")
        return (float(cpu), float(wall)) if wall else (0.0, 0.0)


def compare(work: str, before: Path, pairs: int, folder: Path) -> dict[str, Any]:
    """Medians of both sides and the median ratio with its interval, in CPU-seconds and in seconds."""
    after = Path(__file__).resolve().parent.parent
    with ExitStack() as stack:
        if work in INGEST:
            sys.path.insert(0, str(after))
            from benchmarks.ingest_pairs import prepared

            stack.enter_context(prepared(work, folder))
        elif work != "train":
            python = str(before / ".venv/bin/python")
            subprocess.run([python, __file__, work, "--prepare", str(folder)], cwd=before, check=True)
        sides = {}
        for name, checkout in (("before", before), ("after", after)):
            sides[name] = Side(work, checkout, folder)
            stack.callback(sides[name].close)
            sides[name].run()
        samples: list[dict[str, tuple[float, float]]] = []
        for number in range(pairs):
            order = ("before", "after") if number % 2 else ("after", "before")
            samples.append({name: sides[name].run() for name in order})
    return {"work": work, "pairs": pairs} | {
        unit: summary([(pair["before"][place], pair["after"][place]) for pair in samples])
        for place, unit in enumerate(("cpu_seconds", "seconds"))
    }


def summary(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, the median ratio before / after, and its 95 % interval."""
    ratios = [before / after for before, after in pairs]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    low, high = (round(medians[int(RESAMPLES * share)], 4) for share in (0.025, 0.975))
    return {
        "before": round(statistics.median(before for before, _ in pairs), 4),
        "after": round(statistics.median(after for _, after in pairs), 4),
        "ratio": round(statistics.median(ratios), 4),
        "interval": [low, high],
        "slower": high < 0.98,
    }


def main() -> None:
    """Run one work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--before", type=Path, help="checkout of the earlier commit, with its .venv")
    parser.add_argument("--pairs", type=int, default=24, help="24 at least for a claim")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare is not None:
        prepare(arguments.prepare)
        return
    if arguments.serve is not None:
        serve(arguments.work, arguments.serve)
        return
    if arguments.before is None or not (arguments.before / ".venv/bin/python").exists():
        parser.error(
            f"--before must name a checkout of the earlier commit with its .venv, found {arguments.before}: "
            "git worktree add FOLDER COMMIT && make -C FOLDER .venv/.installed"
        )
    if arguments.pairs < 1:
        parser.error(f"--pairs must be 1 or more, found {arguments.pairs}: a claim takes 24 at least")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(arguments.work, arguments.before.resolve(), arguments.pairs, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
