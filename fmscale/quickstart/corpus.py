"""What quickstart trains on: the standard library of the Python that runs it, or the user's own files."""

import sysconfig
from pathlib import Path

from fmscale.errors import ConfigError

NOT_LIBRARY = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip"}
)
"""Folders that are left out: tests, which are two thirds of the library and mostly data, and what pip installed."""


def standard_library() -> list[str]:
    """The source files of the standard library, about 730 with 12 MB.

    Raises ConfigError for a Python that came without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        str(path)
        for path in sorted(root.rglob("*.py"))
        if not NOT_LIBRARY.intersection(path.relative_to(root).parts[:-1])
    ]
    if not files:
        raise ConfigError(
            "this Python came without the sources of its standard library",
            found=str(root),
            remedy="Give text of your own: fmscale quickstart --corpus FOLDER",
        )
    return files
