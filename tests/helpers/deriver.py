"""Kills a job that derives a column around every write to the store.

    python -m tests.helpers.deriver FOLDER DATASET SPEC
    python -m tests.helpers.deriver FOLDER DATASET --column reference --with RUN@STEP ...

The job derives the sizes of SPEC, or is `fmscale dataset derive` with these words. For n = 0, 1, ...: takes a copy of
the store FOLDER/store, kills a job around its n-th write, and runs the job again. Prints a line for each n: the folder
of the copy, if the job was killed, and the number of columns that were visible then. Ends with the first job that was
not killed. Children are forked: this process starts no thread.
"""

import itertools
import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

from fmscale.cli.main import build_app
from fmscale.data.samples.derive import derive_sizes
from fmscale.data.samples.specs import open_spec
from fmscale.store.datasets.columns import INDEX
from fmscale.store.open import open_store
from tests.helpers.ingester import child, die_at


def main(folder: str, dataset: str, *job: str) -> None:
    """Sweep over the writes."""
    app, of_a_model = build_app(), job[0].startswith("--")
    # Seconds of imports, once before the forks; the first kernel of a process imports torch._dynamo.
    for name in ("torch._dynamo", "fmscale.infer.value_columns", "fmscale.infer.load") if of_a_model else ():
        import_module(name)
    for n in itertools.count():
        store = Path(folder) / str(n)
        shutil.copytree(Path(folder) / "store", store)

        def derive(store: Path = store) -> None:
            if of_a_model:
                app(["dataset", "derive", f"{store}/{dataset}", *job], standalone_mode=False)
            else:
                derive_sizes(str(store), dataset, "train", open_spec(open_store(str(store)), job[0]), workers=1)

        def doomed(n: int = n) -> None:
            die_at(n // 2, behind=bool(n % 2))
            derive()

        killed = child(doomed)
        visible = len(list(store.glob(f"datasets/{dataset}/columns/*/*/{INDEX}")))
        assert not child(derive)
        print(json.dumps({"store": str(store), "killed": killed, "visible": visible}), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
