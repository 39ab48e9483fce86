"""Messages between a job and its workers: lines of JSON, progress, and errors that keep their class on arrival."""

import json
import time
import traceback
from collections.abc import Callable
from typing import Any

from fmscale import errors
from fmscale.errors import FmscaleError

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """The line of JSON of a message."""
    return json.dumps(message, ensure_ascii=True).encode() + b"\n"


def decode(data: bytes) -> Message:
    """The message of a line."""
    message: Message = json.loads(data)
    return message


def describe_error(error: BaseException) -> Message:
    """An error as JSON; errors of other packages include their traceback."""
    if isinstance(error, FmscaleError):
        found = None if error.found is None else str(error.found)
        return {"class": type(error).__name__, "cause": error.cause, "found": found, "remedy": error.remedy}
    return {"class": "", "cause": "".join(traceback.format_exception(error)), "found": None, "remedy": ""}


def rebuild_error(content: Message, where: str = "") -> Exception:
    """The error of `describe_error`, with the place where it happened."""
    kind = getattr(errors, content["class"], None) if content["class"] else None
    if isinstance(kind, type) and issubclass(kind, FmscaleError):
        cause = f"{content['cause']} (in {where})" if where else content["cause"]
        return kind(cause, found=content["found"], remedy=content["remedy"])
    return RuntimeError(f"{where or 'Another process'} failed:\n{content['cause']}")


class Reporter:
    """Progress in bytes, gathered so that small files do not flood the receiver."""

    def __init__(self, send: Callable[[Message], object], seconds: float) -> None:
        """Send at most one message every `seconds`."""
        self._send = send
        self._seconds = seconds
        self._bytes = 0
        self._sent_at = time.monotonic()

    def advance(self, size: int) -> None:
        """Count bytes, and send the sum if `seconds` have passed."""
        self._bytes += size
        if time.monotonic() - self._sent_at >= self._seconds:
            self._send({"advance": self.take()})

    def take(self) -> int:
        """Take the bytes that were not sent yet."""
        size, self._bytes, self._sent_at = self._bytes, 0, time.monotonic()
        return size
