"""A separate process reads tables: if a file crashes its reader, the job loses that file alone.

Native code decodes Parquet and Arrow, and damage that validation misses leads to a segmentation fault. Every
writer (process or MPI rank) and the sampling for a tokenizer have one such process, which starts at the first table,
and again after a crash. A request asks for one chunk of documents, or for one block of records.
"""

import io
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from typing import Any, cast

from fmscale.data.ingest.blocks import RecordBlock
from fmscale.data.ingest.files import Unreadable, open_files, read_file
from fmscale.data.ingest.formats import MAX_DOCUMENT, TABLES, Bad, Item, RawDocument, media
from fmscale.data.ingest.plan import Work
from fmscale.data.workers.messages import Message, decode, encode, rebuild_error
from fmscale.data.workers.pool import died, start

FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})
"""Signals of a process's own faults. Other signals, such as the kernel's 9 for lack of memory, come from outside:
they say nothing about the file, and end the job.
"""


class Reading:
    """Documents or records of a job's files below all listing roots. The caller closes it."""

    def __init__(self, roots: Sequence[str], field: str | None, max_document: int = MAX_DOCUMENT) -> None:
        """`field`: path of the text in a record; None for records. Longer ones than `max_document` are passed over."""
        self._roots = roots
        self._field = field
        self._max_document = max_document
        self._opener = cache(open_files)
        self._process: subprocess.Popen[bytes] | None = None

    def documents(self, work: Work, blocks: str = "") -> Iterator[Item | RecordBlock]:
        """The documents or records of a part of a file. This process reads memory://, which no other process sees.

        `blocks` is the folder for records of tables.
        """
        root = self._roots[work.file.root]
        if work.file.format in TABLES and not root.startswith("memory://"):
            yield from self._apart(work, root, blocks)
            return
        opener = self._opener(root)
        if work.file.format != "media":
            yield from read_file(opener, work.file, work.part(self._field, self._max_document))
            return
        try:
            with ExitStack() as stack:
                file, *beside = [stack.enter_context(opener(one)) for one in (work.file, *work.beside)]
                texts = zip([one.source for one in work.beside], beside, strict=True)
                yield from media.read(file, work.part(self._field, self._max_document), list(texts))
        except Unreadable as error:
            yield Bad("unreadable", str(error))

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._end(self._process)

    def _apart(self, work: Work, root: str, blocks: str) -> Iterator[RawDocument | RecordBlock | Bad]:
        request: Message = {"work": asdict(work), "root": root, "field": self._field, "blocks": blocks}
        request["max_document"] = self._max_document
        rows = 0
        while True:
            process = self._process = self._process or start(f"{__package__}.reader")
            answer = _ask(process, request)
            if answer is None:
                yield self._died(process, work, rows)
                return
            header, data = answer
            if "error" in header:
                raise rebuild_error(header["error"])
            for item in _items(header["items"], data):
                rows += item.rows if isinstance(item, RecordBlock) else 1
                yield item
            if header["end"]:
                return
            request = {}

    def _died(self, process: subprocess.Popen[bytes], work: Work, rows: int) -> Bad:
        """The entry of a file that crashed its reader. Raises RankError if the reader ended for another cause."""
        status = self._end(process)
        if -status in FAULTS:
            name = signal.Signals(-status).name
            return Bad("broken", f"after {rows} rows of part {work.index}: it ended its reader by {name}")
        raise died(f"A process that reads input died while it read {work.file.source}", status)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "both were asked for"
            pipe.close()
        return process.wait()


def _ask(process: subprocess.Popen[bytes], request: Message) -> tuple[Message, memoryview] | None:
    """Header and texts of the answer, or None from a process that died."""
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
    data = memoryview(bytearray(header.get("bytes", 0)))
    place = 0
    while count := cast(io.BufferedReader, process.stdout).readinto(data[place:]):
        place += count
    return (header, data) if place == len(data) else None


def _items(items: list[Any], data: memoryview) -> Iterator[RawDocument | RecordBlock | Bad]:
    place = 0
    for item in items:
        if isinstance(item, dict):
            yield RecordBlock(**item)
            continue
        if len(item) == 2:
            yield Bad(*item)
            continue
        start, stop, size = item
        # A huge document comes alone, and is not copied.
        text = data.obj if size == len(data) else bytes(data[place : place + size])
        yield RawDocument(cast(bytes, text), start, stop)
        place += size
