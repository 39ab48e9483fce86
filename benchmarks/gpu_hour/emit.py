"""How a job hands a record to the driver: a marked line on standard output."""

import json
from typing import Any, TextIO

MARK = "@record "


def emit(stream: TextIO, **values: Any) -> None:
    """Print one record on a line of its own, whatever stands before it."""
    print(f"\n{MARK}{json.dumps(values)}", file=stream, flush=True)


def parse(line: str) -> dict[str, Any] | None:
    """The record of a line; None where it has none, or a torn one."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
