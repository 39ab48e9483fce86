"""JSONL file of metrics, and its readers."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmscale.errors import FormatError
from fmscale.runtime.record_file import RecordFile


class JsonlSink(RecordFile):
    """Appends a JSON object a line, with its time; survives a kill, and a disk that is full for a while.

    An unfinished line of an earlier process is cut off on opening. A number that JSON lacks is written as the text
    "nan", "inf" or "-inf".
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, lines=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record, with the current time as `time` unless the record has a `time`."""
        values = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in {"time": time.time(), **record}.items()
        }
        self.append((json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file in order; an unfinished last line is left out.

    Raises FormatError with file:line for any other line that is not a JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            problem = "not a JSON object"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem, record = "not JSON", str(error)
            if not isinstance(record, dict):
                raise FormatError(
                    f"{path}:{number}: {problem}", found=record, remedy="Delete the line; each line is one record."
                )
            yield record


def read_last(path: Path, size: int = 65_536) -> list[dict[str, Any]]:
    """The records in the last `size` bytes of a JSONL file, oldest first; [] without a file. Half a record is left out,
    so that a file can be read while it is written.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]
