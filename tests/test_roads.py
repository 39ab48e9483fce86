"""The roads of docs/: a page names the files that a real run enters, and no others."""

import re
import sys
import threading
from collections.abc import Callable
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType

from fmscale.data.open import open_loader
from fmscale.store.open import open_store
from tests.helpers.corpus import T, store_corpus

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "store", "checkpoint")
MOST_TOLD = 14
"""Files that a road tells, so that a reader has it in five minutes; the others are leaves, a line each."""


def entered(run: Callable[[], object]) -> set[str]:
    """Files below the rooms whose functions `run` calls in this process, in any thread that begins meanwhile."""
    product = f"{ROOT / 'fmscale'}/"
    found: set[str] = set()

    def importing(frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(product):
                return True
            frame = frame.f_back
        return False

    def call(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if (
            code.co_filename not in found
            and code.co_filename.startswith(product)
            and code.co_flags & CO_OPTIMIZED  # a function, not the body of a class
            and not importing(frame)
        ):
            found.add(code.co_filename)

    before = sys.gettrace()
    threading.settrace(call)
    sys.settrace(call)
    try:
        run()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    paths = {name.removeprefix(product) for name in found}
    return {path for path in paths if path.split("/")[0] in ROOMS}


def named(page: str, heading: str) -> list[str]:
    """Files that begin the list entries of a section, such as "3. `data/loader.py`"."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return re.findall(r"^(?:\d+\.|-) `([\w/]+\.py)`", section, re.MULTILINE)


def check_road(name: str, run: Callable[[], object]) -> None:
    """The page docs/NAME.md tells the files that `run` enters, each once: the road, then the leaves."""
    page = (ROOT / "docs" / f"{name}.md").read_text()
    told, leaves = named(page, "The road"), named(page, "Leaves")
    assert len(told) <= MOST_TOLD
    files, seen = [*told, *leaves], entered(run)
    assert (sorted(seen - set(files)), sorted(set(files) - seen)) == ([], []), "(missing on the page, not entered)"
    assert len(files) == len(set(files)), "a file stands on the page once"


def test_a_samples_road(tmp_path: Path) -> None:
    store_corpus(open_store(str(tmp_path / "store")))

    def first_batch() -> None:
        loader = open_loader(
            str(tmp_path / "store"), dataset="corpus", sequence_length=T, batch=8, cache_dir=tmp_path / "cache"
        )
        with loader:
            assert next(loader).loss_weights.shape == (8, T)

    check_road("a-samples-road", first_batch)
