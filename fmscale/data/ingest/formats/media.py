"""Images, audio and video: a record a file, with the texts beside it."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, RawRecord

COMPANIONS = ("txt", "json", "caption")
"""Extensions of files beside a media file that are columns of its record."""

MOST_BYTES = 2**31 - 1
"""Most bytes of a value of Arrow's type binary."""


def read(file: BinaryIO, part: FilePart, beside: Sequence[tuple[str, BinaryIO]]) -> Iterator[RawRecord | Bad]:
    """The record of a file: its source name, its bytes, the last folder's name, and the bytes of each (source, file) in
    `beside` under `txt` or `json`. A caption is the `txt` of a file that has no other.
    """
    size = file.seek(0, 2)
    if size == 0:
        yield Bad("empty", "")
        return
    if size + sum(content.seek(0, 2) for _, content in beside) > min(part.max_document, MOST_BYTES):
        yield part.too_long(f"{size} bytes")
        return
    file.seek(0)
    source = part.source
    folder = source.rpartition("/")[0].rpartition("/")[2]
    values: dict[str, Any] = {"name": source, "data": file.read(), "folder": folder}
    for name, content in beside:
        extension = name.rpartition(".")[2]
        column = "txt" if extension == "caption" and "txt" not in values else extension
        content.seek(0)
        values[column] = content.read()
        size += len(values[column])
    yield RawRecord(values, 0, len(values["data"]), size)
