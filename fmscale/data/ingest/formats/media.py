"""Images, audio and video: a record a file, with the texts beside it."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from fmscale.data.ingest.formats import Bad, RawRecord

COMPANIONS = ("txt", "json", "caption")
"""Extensions of files beside a media file that are columns of its record."""

MOST_BYTES = 2**31 - 1
"""Most bytes of a value of Arrow's type binary."""


def read(file: BinaryIO, source: str, beside: Sequence[tuple[str, BinaryIO]]) -> Iterator[RawRecord | Bad]:
    """The record of a file: its source name, its bytes, the last folder's name, and the bytes of each (source, file) in
    `beside` under `txt` or `json`. A caption is the `txt` of a file that has no other.
    """
    size = file.seek(0, 2)
    if size == 0:
        yield Bad("empty", "")
        return
    if size > MOST_BYTES:
        yield Bad("broken", f"{size} bytes: a record has at most {MOST_BYTES}")
        return
    file.seek(0)
    folder = source.rpartition("/")[0].rpartition("/")[2]
    values: dict[str, Any] = {"name": source, "data": file.read(), "folder": folder}
    for name, content in beside:
        extension = name.rpartition(".")[2]
        column = "txt" if extension == "caption" and "txt" not in values else extension
        values[column] = content.read()
        size += len(values[column])
    yield RawRecord(values, 0, len(values["data"]), size)
