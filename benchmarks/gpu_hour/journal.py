"""Files of an hour: a record a line, on disk before the next process begins, and the end of the output."""

import json
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

FORMAT = "fmscale-gpu-hour"
FORMAT_VERSION = 1
RESULTS, LOG = "results.jsonl", "log.txt"
LOG_BYTES = 4 * 2**20
"""Size at which the log begins again from its last lines; a file from a borrowed machine may have 16 MiB."""
KEPT_LINES, LINE_CHARACTERS = 4000, 500


class Journal:
    """Appends to both files of a folder; safe between threads."""

    def __init__(self, folder: Path) -> None:
        """Begins both files again; records of an earlier hour stay beside them under the time of their end."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESULTS
        if path.is_file():
            path.rename(path.with_suffix(f".{int(path.stat().st_mtime)}.jsonl"))
        self._records = open(path, "wb")  # noqa: SIM115  (open until close)
        self._log = open(folder / LOG, "wb")  # noqa: SIM115
        self._kept: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._lock = threading.Lock()

    def record(self, kind: str, **values: Any) -> None:
        """Keep one record; the disk has it when this returns. A number that JSON lacks is written as null."""
        line = json.dumps({"kind": kind, **_finite(values)}) + "\n"
        with self._lock:
            self._records.write(line.encode())
            self._records.flush()
            os.fsync(self._records.fileno())

    def say(self, line: str) -> None:
        """Keep a line of the output, or its beginning."""
        data = (line.rstrip("\n")[:LINE_CHARACTERS] + "\n").encode(errors="replace")
        with self._lock:
            self._kept.append(data)
            if self._log.tell() + len(data) > LOG_BYTES:
                self._log.seek(0)
                self._log.truncate()
                self._log.write(b"(earlier lines are not kept)\n" + b"".join(self._kept))
            else:
                self._log.write(data)
            self._log.flush()

    def close(self) -> None:
        """End both files."""
        self._records.close()
        self._log.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
