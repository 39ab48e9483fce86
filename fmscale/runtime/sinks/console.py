"""Metrics as lines on the terminal, for people."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from fmscale.text import clean

logger = logging.getLogger(__name__)


def print_record(record: Mapping[str, Any], stream: TextIO, names: tuple[str, ...] = ()) -> None:
    """Print a line such as `step 120  loss 3.412  81,200 tokens/s`: the values of `names` in that order, or all values
    if `names` is empty, each with its unit. An event is dim on a terminal.
    """
    chosen = [name for name in names or record if name in record]
    if chosen:
        line = "  ".join(_worded(name, record) for name in chosen)
        print(dim(line, stream) if "event" in record else line, file=stream, flush=True)


def optional(show: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """`show` without its OSErrors, as a terminal or the reader of a pipe may close; the first error is logged."""
    logged = False

    def shown(record: Mapping[str, Any]) -> None:
        nonlocal logged
        try:
            show(record)
        except OSError as error:
            if not logged:
                logger.warning("progress is not shown: %s. The run goes on.", error.strerror)
            logged = True

    return shown


def is_screen(stream: TextIO) -> bool:
    """True if a line of the stream can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    """The text, dim where the stream is a terminal whose user wants styles (no-color.org)."""
    return f"\x1b[2m{text}\x1b[0m" if is_screen(stream) and not os.environ.get("NO_COLOR") else text


def _worded(name: str, record: Mapping[str, Any]) -> str:
    """A name and its value with a unit; a unit that says enough, such as tokens/s, stands without the name."""
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(str(value) if name == "event" else f"{name} {value}")
    match name:
        case _ if name.endswith("_per_second"):
            return f"{_short(value)} {name.removesuffix('_per_second')}/s"
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
