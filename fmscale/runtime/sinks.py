"""Where metrics go: a JSONL file for machines and a line on the terminal for people."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from fmscale.errors import FormatError


class Sink(Protocol):
    """Takes one record at a time."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep one record: names to numbers or texts, `step` among them."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class JsonlSink:
    """One JSON object a line, with the time, appended; survives a kill.

    A line that an earlier process did not finish is cut off on opening. A number that JSON lacks (a loss
    that is not finite) is written as the text "nan", "inf" or "-inf".
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115  (open until close)
        _cut_torn_line(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record; the operating system has it when this returns."""
        values = {name: _jsonable(value) for name, value in {"time": time.time(), **record}.items()}
        line = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        """Make what was written durable."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class ConsoleSink:
    """A line such as `step 120  loss 3.412  tokens_per_second 81,200`, with the names asked for, in order."""

    def __init__(self, names: tuple[str, ...] = (), stream: TextIO | None = None) -> None:
        self._names = names
        self._stream = stream or sys.stderr

    def write(self, record: Mapping[str, Any]) -> None:
        """Print what of the record was asked for; everything if nothing was named."""
        names = [name for name in self._names if name in record] if self._names else list(record)
        if names:
            print(
                "  ".join(f"{name} {_short(record[name])}" for name in names), file=self._stream, flush=True
            )

    def close(self) -> None:
        """Nothing to do: the stream is not ours."""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file in order; an unfinished last line is left out.

    Raises FormatError with file:line for any other line that is not a JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise FormatError(
                    f"{path}:{number}: not JSON",
                    found=str(error),
                    remedy="Delete the line; each line is one record.",
                ) from error
            if not isinstance(record, dict):
                raise FormatError(
                    f"{path}:{number}: not a JSON object",
                    found=record,
                    remedy="Delete the line; each line is one record.",
                )
            yield record


def _cut_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 4096)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        file.truncate(end)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
