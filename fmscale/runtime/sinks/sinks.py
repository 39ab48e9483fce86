"""Where metrics go: a JSONL file for machines and a line on the terminal for people."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from fmscale.errors import FormatError
from fmscale.runtime.record_file import RecordFile

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes one record at a time."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep one record: names to numbers or texts, `step` among them."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class JsonlSink:
    """One JSON object a line, with its time, appended; survives a kill, and a disk that is full for a while.

    A line that an earlier process did not finish is cut off on opening. A number that JSON lacks (a loss
    that is not finite) is written as the text "nan", "inf" or "-inf".
    """

    def __init__(self, path: Path) -> None:
        self._file = RecordFile(path, lines=True)

    @property
    def lost(self) -> int:
        """Records that could not be written, and were more than memory is kept for."""
        return self._file.lost

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record; its `time` is now unless it has one."""
        values = {name: _jsonable(value) for name, value in {"time": time.time(), **record}.items()}
        self._file.append((json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Make what was written durable."""
        self._file.close()


class ConsoleSink:
    """A line such as `step 120  loss 3.412  81,200 tokens/s`, with the names asked for, in order; an event is dim on
    a terminal. The names are those of the record, each value with its unit.
    """

    def __init__(self, names: tuple[str, ...] = (), stream: TextIO | None = None) -> None:
        self._names = names
        self._stream = stream or sys.stderr

    def write(self, record: Mapping[str, Any]) -> None:
        """Print what of the record was asked for; everything if nothing was named."""
        names = [name for name in self._names if name in record] if self._names else list(record)
        if names:
            line = "  ".join(_worded(name, record) for name in names)
            print(dim(line, self._stream) if "event" in record else line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to do: the stream is not ours."""


def optional(show: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """`show`, whose OSErrors end nothing: a terminal or the reader of a pipe may go. The first one is logged."""
    told = False

    def shown(record: Mapping[str, Any]) -> None:
        nonlocal told
        try:
            show(record)
        except OSError as error:
            if not told:
                logger.warning("progress is not shown: %s. The run goes on.", error.strerror)
            told = True

    return shown


def is_screen(stream: TextIO) -> bool:
    """Whether a line of the stream can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    """The text, dim where the stream is a terminal whose user wants styles (no-color.org)."""
    return f"\x1b[2m{text}\x1b[0m" if is_screen(stream) and not os.environ.get("NO_COLOR") else text


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


def read_last(path: Path, size: int = 65_536) -> list[dict[str, Any]]:
    """The records in the last `size` bytes of a JSONL file, oldest first; [] if there is none. What is no record is
    left out, so that this can be asked of a file that is being written.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _worded(name: str, record: Mapping[str, Any]) -> str:
    """A name and its value with its unit; a unit that says it all stands alone."""
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value) if name == "event" else f"{name} {value}"
    match name:
        case "tokens_per_second":
            return f"{_short(value)} tokens/s"
        case "tokens":
            return f"{_short(value)} tokens"
        case "mfu":
            return f"{name} {value:.1%}".replace("%", " %")
        case "data_stall" if record.get("seconds"):
            return f"{name} {value / record['seconds']:.1%}".replace("%", " %")
        case "seconds" | "data_stall" | "ckpt_blocking":
            return f"{name} {_seconds(value)}"
        case _ if name.endswith("_seconds"):
            return f"{name.removesuffix('_seconds')} {_seconds(value)}"
    return f"{name} {_short(value)}"


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 10 else f"{value:,.0f} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
