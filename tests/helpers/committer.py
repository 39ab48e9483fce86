"""Appends to a log until a test kills it, and prints acknowledged entries.

    python -m tests.helpers.committer STORE_URL LOG_PREFIX NAME [COUNT]

Each printed line is "NUMBER UUID". With COUNT it ends after as many entries.
"""

import os
import sys

from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store

PADDING = "x" * 30_000
"""Makes an entry larger than a page, so that a half-written entry would show."""


def main(url: str, prefix: str, name: str, count: str = "1000000") -> None:
    """Append `count` entries."""
    log = Log(open_store(url), prefix, RUN_KINDS)
    os.write(1, b"ready\n")
    sys.stdin.readline()
    for i in range(int(count)):
        entry = log.append("commit", {"name": name, "i": i, "padding": PADDING})
        os.write(1, f"{entry.number} {entry.uuid}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
