"""Kills the job that renders chats around every write to the store.

    python -m tests.helpers.renderer FOLDER SOURCE TARGET

For n = 0, 1, ...: takes a copy of the store FOLDER/store, kills a job around its n-th write, and runs the job again.
Prints a line for each n: the folder of the copy, if the job was killed, and the commits then. Ends with the first job
that was not killed. Children are forked: this process starts no thread.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

from tests.helpers.chats import rendered
from tests.helpers.ingester import child, die_at


def main(folder: str, source: str, target: str) -> None:
    """Sweep over the writes."""
    for n in itertools.count():
        store = Path(folder) / str(n)
        shutil.copytree(Path(folder) / "store", store)

        def doomed(store: Path = store, n: int = n) -> None:
            die_at(n // 2, behind=bool(n % 2))
            rendered(str(store), source, target)

        killed = child(doomed)
        log = store / "datasets" / target / "log"
        commits = len(list(log.glob("0*.json"))) if log.is_dir() else 0
        assert not child(lambda store=store: rendered(str(store), source, target))  # type: ignore[misc]
        print(json.dumps({"store": str(store), "killed": killed, "commits": commits}), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
