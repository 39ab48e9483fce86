"""What writers tell each other: JSON, and errors that arrive as the errors they were."""

import json
import traceback
from typing import Any

from fmscale import errors
from fmscale.errors import FmscaleError

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line of JSON."""
    return json.dumps(message, ensure_ascii=True).encode() + b"\n"


def decode(data: bytes) -> Message:
    """The message of a line."""
    message: Message = json.loads(data)
    return message


def describe_error(error: BaseException) -> Message:
    """An error as JSON; one that is not fmscale's own goes with its traceback."""
    if isinstance(error, FmscaleError):
        found = None if error.found is None else str(error.found)
        return {
            "class": type(error).__name__,
            "cause": error.cause,
            "found": found,
            "remedy": error.remedy,
        }
    return {"class": "", "cause": "".join(traceback.format_exception(error)), "found": None, "remedy": ""}


def rebuild_error(content: Message, where: str = "") -> Exception:
    """The error that `describe_error` described, saying `where` it happened."""
    kind = getattr(errors, content["class"], None) if content["class"] else None
    if isinstance(kind, type) and issubclass(kind, FmscaleError):
        cause = f"{content['cause']} (in {where})" if where else content["cause"]
        return kind(cause, found=content["found"], remedy=content["remedy"])
    return RuntimeError(f"{where or 'Another process'} failed:\n{content['cause']}")
