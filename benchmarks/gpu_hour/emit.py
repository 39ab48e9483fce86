"""Records from a job to the driver: marked lines on standard output."""

import json
from typing import Any, TextIO

MARK = "@record "


def emit(stream: TextIO, **values: Any) -> None:
    """Print one record on its own line, whatever the earlier output."""
    print(f"\n{MARK}{json.dumps(values)}", file=stream, flush=True)


def parse(line: str) -> dict[str, Any] | None:
    """The record of a line; None for a line without a record or with a torn record."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
