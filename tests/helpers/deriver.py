"""Kills the job that derives sizes around every write to the store.

    python -m tests.helpers.deriver FOLDER DATASET SPEC

For n = 0, 1, ...: takes a copy of the store FOLDER/store, kills a job around its n-th write, and runs the job again.
Prints a line for each n: the folder of the copy, and if the job was killed. Ends with the first job that was not
killed. Children are forked: this process starts no thread.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

from fmscale.data.samples.derive import derive_sizes
from fmscale.data.samples.specs import open_spec
from fmscale.store.open import open_store
from tests.helpers.ingester import child, die_at


def main(folder: str, dataset: str, spec: str) -> None:
    """Sweep over the writes."""
    for n in itertools.count():
        store = Path(folder) / str(n)
        shutil.copytree(Path(folder) / "store", store)

        def derive(store: Path = store) -> None:
            derive_sizes(str(store), dataset, "train", open_spec(open_store(str(store)), spec), workers=1)

        def doomed(n: int = n) -> None:
            die_at(n // 2, behind=bool(n % 2))
            derive()

        killed = child(doomed)
        assert not child(derive)
        print(json.dumps({"store": str(store), "killed": killed}), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
