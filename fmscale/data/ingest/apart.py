"""Tables are read in a process of their own, so that a file that ends its reader costs that file alone.

Parquet and Arrow are decoded by native code, and what validation does not find there is a segmentation fault.
Every writer, process or MPI rank, and the sampling of a corpus for its tokenizer, has one such process, which
is started at the first table and anew after it died. It is asked for one chunk of documents at a time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fmscale
from fmscale.data.ingest.files import Files, open_files
from fmscale.data.ingest.formats import TABLES, Bad, RawDocument, read
from fmscale.data.ingest.messages import Message, decode, encode, rebuild_error
from fmscale.data.ingest.plan import Work
from fmscale.errors import RankError

FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})
"""Signals that a process gets for what it did itself. Others, such as the 9 of the kernel that is out of
memory, come from outside: they say nothing about the file, and end the job.
"""


class Reading:
    """The documents of a job's files, whichever listing root they are below. To be closed."""

    def __init__(self, roots: Sequence[str], field: str) -> None:
        self._roots = roots
        self._field = field
        self._files: dict[int, Files] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def documents(self, work: Work) -> Iterator[RawDocument | Bad]:
        """The documents of a piece of a file. Only this process sees what is in memory://, so it reads that."""
        root = self._roots[work.file.root]
        if work.file.format in TABLES and not root.startswith("memory://"):
            yield from self._apart(work, root)
            return
        if work.file.root not in self._files:
            self._files[work.file.root] = open_files(root)
        with self._files[work.file.root].open(work.file) as file:
            yield from read(file, work.piece(self._field))

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._end(self._process)

    def _apart(self, work: Work, root: str) -> Iterator[RawDocument | Bad]:
        request: Message = {"work": asdict(work), "root": root, "field": self._field}
        rows = 0
        while True:
            process = self._process = self._process or start("reader")
            answer = _ask(process, request)
            if answer is None:
                yield self._died(process, work, rows)
                return
            header, data = answer
            if "error" in header:
                raise rebuild_error(header["error"])
            yield from _items(header["items"], data)
            if header["end"]:
                return
            rows += len(header["items"])
            request = {}

    def _died(self, process: subprocess.Popen[bytes], work: Work, rows: int) -> Bad:
        """The file that ended its reader. Raises RankError if something else did."""
        status = self._end(process)
        if -status in FAULTS:
            name = signal.Signals(-status).name
            return Bad("broken", f"after {rows} rows of piece {work.index}: it ended its reader by {name}")
        raise RankError(
            f"A process that reads input died while it read {work.file.source}",
            found=f"signal {-status}" if status < 0 else f"exit status {status}",
            remedy="Signal 9 is often a lack of memory: use fewer --workers. Run again to go on.",
        )

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "both were asked for"
            pipe.close()
        return process.wait()


def start(module: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A module of this package as a process that is talked to over its standard input and output."""
    package = str(Path(fmscale.__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
    )


def _ask(process: subprocess.Popen[bytes], request: Message) -> tuple[Message, bytes] | None:
    """The answer's header and texts, or None from a process that died."""
    assert process.stdin is not None, "both were asked for"
    assert process.stdout is not None, "both were asked for"
    try:
        os.write(process.stdin.fileno(), encode(request))
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    header = decode(line)
    data = process.stdout.read(header.get("bytes", 0))
    return (header, data) if len(data) == header.get("bytes", 0) else None


def _items(items: list[Any], data: bytes) -> Iterator[RawDocument | Bad]:
    place = 0
    for item in items:
        if len(item) == 2:
            yield Bad(*item)
            continue
        start, stop, size = item
        yield RawDocument(data[place : place + size].decode(), start, stop)
        place += size
