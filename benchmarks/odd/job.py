"""A process that does ingest jobs: `python -m benchmarks.odd.job`. A line of JSON is a job, and a line its outcome.

Jobs run as `fmscale ingest --workers 1` runs them, so this process is the one writer, with the process that reads
tables below it. It keeps all names of input that was passed over, not the first five.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmscale.data.ingest import ingest, record
from fmscale.errors import FmscaleError

record.FIRST_NAMES = 1 << 30


def main() -> None:
    """Do the jobs of the standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(outcome(json.loads(line))), file=answers)


def outcome(job: dict[str, Any]) -> dict[str, Any]:
    """Result or error of a job, and the most memory of this process so far, its reader included."""
    found: dict[str, Any] = {"error": "", "skipped": {}, "guessed": {}}
    try:
        result = ingest(
            job["paths"], store=job["store"], dataset=job["dataset"], progress=progress(job), **job["options"]
        )
        found |= {"skipped": result.skipped, "guessed": result.guessed}
    except FmscaleError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    except Exception as error:
        found["error"] = f"{type(error).__name__} without cause and remedy: {error}"
    return {**found, "peak": peak()}


def peak() -> int:
    """Most bytes of this process and of its largest child together; the libraries that both map count once."""
    values = dict(re.findall(r"(VmHWM|RssFile):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * (int(values["VmHWM"]) + max(0, child - int(values["RssFile"])))


def progress(job: dict[str, Any]) -> Callable[[str, int, int], object]:
    """A sign of progress that changes a file: before the first read (`at` 0), or behind a batch of documents."""
    change = job.get("change")
    calls = 0

    def call(phase: str, done: int, total: int) -> None:
        nonlocal calls
        if change and phase == "writing":
            if calls == change["at"]:
                alter(Path(change["path"]), change["how"])
            calls += 1

    return call


def alter(path: Path, how: str) -> None:
    """Change a file in one of the ways in which files change while they are read."""
    status = path.stat()
    if how == "append":
        with path.open("ab") as file:
            file.write(path.read_bytes()[:100_000])
    elif how == "truncate":
        os.truncate(path, status.st_size // 2)
    elif how == "replace":
        other = path.with_name(".other")
        other.write_bytes(path.read_bytes()[::-1])
        other.rename(path)
    elif how == "overwrite":
        with path.open("r+b") as file:
            file.seek(status.st_size - 1000)
            file.write(b"\n" * 1000)
    elif how == "remove":
        path.unlink()
    elif how == "touch":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 5_000_000_000))
    else:
        raise ValueError(how)


if __name__ == "__main__":
    main()
