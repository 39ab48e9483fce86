"""The text of a quickstart: the standard library of the Python that runs it, or the user's own files."""

import os
import sysconfig
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.content import data_hash
from fmscale.data.ingest.formats import RawDocument
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.sources import list_sources
from fmscale.errors import ConfigError, DataError

HELDOUT = 0.03
"""Share of the documents that training never sees: about 20 files of the standard library."""

NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip"})
"""Folders that are left out: tests (two thirds of the library, mostly data), and packages of pip."""


def standard_library() -> list[str]:
    """The source files of the standard library, about 730 with 12 MB. Raises ConfigError if Python lacks them."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_LIBRARY]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise ConfigError(
            "this Python came without the sources of its standard library",
            found=str(root),
            remedy="Give text of your own: fmscale quickstart --corpus FOLDER",
        )
    return [str(path) for path in sorted(files)]


def heldout_share(arguments: Sequence[str], store: str) -> float:
    """HELDOUT, or for few files the share that holds back a single document. A file of records counts as many
    documents. Raises DataError for a single document.
    """
    listing = list_sources(arguments, store=store)
    if any(file.format not in ("text", "") for file in listing.files):
        return HELDOUT
    if len(listing.files) < 2:
        raise nothing_held_out(len(listing.files))
    contents: list[int] = []
    with closing(Reading([root.url for root in listing.roots], "text")) as reading:
        for file in listing.files:
            work = Work(file=replace(file, format="text"), index=0, of=1)
            contents += [data_hash(item.data) for item in reading.documents(work) if isinstance(item, RawDocument)]
            if contents and contents[-1] < HELDOUT * 2**64:
                return HELDOUT
    least = sorted(set(contents))[:2]
    return sum(least) / 2 / 2**64 if len(least) == 2 else HELDOUT


def nothing_held_out(documents: int) -> DataError:
    """The error for a corpus without a held-out document."""
    return DataError(
        "no document of the corpus was held out, so there would be nothing to measure on",
        found=f"{documents} document{'s' * (documents != 1)}; those held out are chosen by their content",
        remedy="Give --corpus some hundred files, or a .jsonl file of as many texts, and another --folder.",
    )
