"""The text of a quickstart: the standard library of the Python that runs it, or the user's own files."""

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from fmscale.data.ingest.plan import document_id, is_heldout
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
    documents. Raises DataError for a single document, before any file is read.
    """
    files = list_sources(arguments, store=store).files
    if any(file.format not in ("text", "") for file in files):
        return HELDOUT
    documents = [document_id(file.source, 0) for file in files]
    if len(documents) < 2:
        raise nothing_held_out(len(documents))
    if any(is_heldout(document, HELDOUT) for document in documents):
        return HELDOUT
    first, second = sorted(int.from_bytes(document[:8], "big") / 2**64 for document in documents)[:2]
    return (first + second) / 2


def nothing_held_out(documents: int) -> DataError:
    """The error for a corpus without a held-out document."""
    return DataError(
        "no document of the corpus was held out, so there would be nothing to measure on",
        found=f"{documents} document{'s' * (documents != 1)}; those held out are chosen by their names",
        remedy="Give --corpus some hundred files, or a .jsonl file of as many texts, and another --folder.",
    )
