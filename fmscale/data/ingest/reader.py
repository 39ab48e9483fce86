"""The process that reads tables: `python -m fmscale.data.ingest.reader`, started by `apart`.

Each line of its standard input requests one chunk of documents: the first chunk of the part in the line, or, with an
empty message, the next chunk of that part. It answers with a line of JSON and the texts, and ends with its input.
A chunk of records is a block in a scratch file.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmscale.data.ingest.blocks import spill_rows
from fmscale.data.ingest.files import Opener, open_files, read_file
from fmscale.data.ingest.formats import Bad, RawBatch, RawDocument
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.sources import File
from fmscale.data.workers.messages import Message, decode, describe_error, encode
from fmscale.store.backends.posix import write_all

CHUNK_BYTES = 1 << 20
CHUNK_ITEMS = 1024
"""Size of a chunk: a round trip takes 0.1 ms, and the tokenizer needs 0.5 s for a MB."""


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets SIGINT too, and decides
    # mimalloc keeps a second copy of a large page of Parquet resident: 837 instead of 461 MB for a page of 400 MB.
    pa.set_memory_pool(pa.system_memory_pool())
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    opener = cache(open_files)
    chunks: Iterator[tuple[bytes, ...]] = iter(())
    for line in sys.stdin.buffer:
        message = decode(line)
        if message:
            chunks = _chunks(message, opener)
        for part in next(chunks):
            write_all(answers, part)


def _chunks(request: Message, opener: Callable[[str], Opener]) -> Iterator[tuple[bytes, ...]]:
    """The answers to a request and to the empty requests that follow."""
    items: list[list[Any] | dict[str, Any]] = []
    texts: list[bytes] = []
    size = 0
    try:
        work = Work(**{**request["work"], "file": File(**request["work"]["file"])})
        opened = opener(request["root"])
        for item in read_file(opened, work.file, work.part(request["field"], request["max_document"])):
            if isinstance(item, RawDocument):
                texts.append(item.data)
                items.append([item.start, item.stop, len(texts[-1])])
                size += len(texts[-1])
            elif isinstance(item, RawBatch):
                items.append(asdict(spill_rows(item, work.file.source, Path(request["blocks"]))))
                size = CHUNK_BYTES
            elif isinstance(item, Bad):
                items.append([item.reason, item.where])
            del item  # a huge document would stay in memory while the next is read
            if size >= CHUNK_BYTES or len(items) == CHUNK_ITEMS:
                yield _answer(items, texts, end=False)
                items, texts, size = [], [], 0
        yield _answer(items, texts, end=True)
    except Exception as error:
        yield (encode({"error": describe_error(error)}),)


def _answer(items: Sequence[Any], texts: list[bytes], *, end: bool) -> tuple[bytes, ...]:
    size = sum(map(len, texts))
    # A huge document behind small ones is not copied.
    parts = texts if size > 2 * CHUNK_BYTES else [b"".join(texts)]
    return encode({"items": items, "bytes": size, "end": end}), *parts


if __name__ == "__main__":
    main()
