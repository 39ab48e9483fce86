"""Runs ingest jobs that a test describes as JSON, and kills them at every write to the store.

    python -m tests.helpers.ingester run OPTIONS                  one job; prints its result
    python -m tests.helpers.ingester sweep OPTIONS FOLDER STEP    see `sweep`

OPTIONS are the arguments of `fmscale.data.ingest.ingest`. With `run` every rank of an mpirun is a writer.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fmscale.data.ingest import ingest
from fmscale.store.backends.local import LocalBackend
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store

WRITES = ("put", "put_if_absent", "put_file")


def run(options: dict[str, Any]) -> None:
    """One job; rank 0 prints the result."""
    result = ingest(**options)
    if int(os.environ.get("PMI_RANK", "0")) == 0:
        print(json.dumps(asdict(result)), flush=True)


def sweep(options: dict[str, Any], folder: str, step: str) -> None:
    """For n = 0, STEP, ...: take a fresh store, kill a job around its n-th write, and run the job again.

    With even n it dies before the write n // 2, with odd n after it. Prints a line for each n: if the job was killed,
    the dataset's commits then, and the store's folder after the second run. Ends with the first job that was not
    killed. Children are forked: this process starts no thread.
    """
    ready = Path(folder) / "ready"
    child(lambda: require_writable(open_store(str(ready))))
    for n in itertools.count(step=int(step)):
        store = Path(folder) / str(n)
        shutil.copytree(ready, store)
        job = {**options, "store": str(store)}

        def doomed(job: dict[str, Any] = job, n: int = n) -> None:
            die_at(n // 2, behind=bool(n % 2))
            ingest(**job)

        killed = child(doomed)
        log = store / "datasets" / options["dataset"] / "log"
        entries = len(list(log.glob("0*.json"))) if log.is_dir() else 0
        assert not child(partial(ingest, **job))
        print(json.dumps({"n": n, "killed": killed, "commits": entries, "store": str(store)}), flush=True)
        if not killed:
            return


def child(work: Callable[[], object]) -> bool:
    """Do the work in a forked process. True if it was killed; any other failure raises here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"a job ended with {status}"
    return False


def die_at(number: int, *, behind: bool) -> None:
    """Kill this process at its write of that number, before the write or when it is durable."""
    count = itertools.count()

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            mine = next(count) == number
            if mine and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments, **options)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in WRITES:
        setattr(LocalBackend, name, wrap(getattr(LocalBackend, name)))


if __name__ == "__main__":
    mode, text, *rest = sys.argv[1:]
    if mode == "run":
        run(json.loads(text))
    else:
        sweep(json.loads(text), *rest)
