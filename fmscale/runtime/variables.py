"""Environment variables that a run sets for libraries, and restores at its end for later runs and child processes."""

import os

_before: dict[str, str | None] = {}


def lend(**values: str) -> None:
    """Set variables until `take_back`."""
    for name, value in values.items():
        _before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def take_back() -> None:
    """Restore the environment as it was before the first `lend`."""
    while _before:
        name, value = _before.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
