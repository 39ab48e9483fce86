"""The process that reads tables: `python -m fmscale.data.ingest.reader`, started by `apart`.

Each line of its standard input asks for one chunk of documents: of the piece that the line names, or the next
one of the same piece. It answers with a line of JSON and the texts, and ends with its input.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from fmscale.data.ingest.files import Files, open_files
from fmscale.data.ingest.formats import RawDocument, read
from fmscale.data.ingest.messages import Message, decode, describe_error, encode
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.sources import File

CHUNK_BYTES = 1 << 20
CHUNK_ITEMS = 1024
"""A chunk ends when it has so much: a round trip of 0.1 ms is nothing beside a MB that is tokenized in 0.5 s."""


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and decides
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    opened: dict[str, Files] = {}
    chunks: Iterator[bytes] = iter(())
    for line in sys.stdin.buffer:
        message = decode(line)
        if message:
            chunks = _chunks(message, opened)
        data = memoryview(next(chunks))
        while data:
            data = data[answers.write(data) :]


def _chunks(request: Message, opened: dict[str, Files]) -> Iterator[bytes]:
    """The answers to a request and to those for what follows."""
    items: list[list[Any]] = []
    texts: list[bytes] = []
    size = 0
    try:
        root = request["root"]
        if root not in opened:
            opened[root] = open_files(root)
        work = Work(**{**request["work"], "file": File(**request["work"]["file"])})
        with opened[root].open(work.file) as file:
            for found in read(file, work.piece(request["field"])):
                if isinstance(found, RawDocument):
                    texts.append(found.text.encode())
                    items.append([found.start, found.stop, len(texts[-1])])
                    size += len(texts[-1])
                else:
                    items.append([found.reason, found.where])
                if size >= CHUNK_BYTES or len(items) == CHUNK_ITEMS:
                    yield _answer(items, texts, end=False)
                    items, texts, size = [], [], 0
        yield _answer(items, texts, end=True)
    except Exception as error:
        yield encode({"error": describe_error(error)})


def _answer(items: list[list[Any]], texts: list[bytes], *, end: bool) -> bytes:
    data = b"".join(texts)
    return encode({"items": items, "bytes": len(data), "end": end}) + data


if __name__ == "__main__":
    main()
