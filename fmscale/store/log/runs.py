"""Runs of a store: folders runs/NAME with a log."""

import difflib

from fmscale.errors import ConfigError
from fmscale.store.backends.protocol import Backend


def require_run(backend: Backend, run: str) -> None:
    """Raise ConfigError, with the nearest names, unless the store has a run of this name."""
    runs = [name.rstrip("/") for name in backend.list_names("runs")]
    if run in runs:
        return
    near = difflib.get_close_matches(run, runs, cutoff=0.5) or runs[:10]
    raise ConfigError(
        f"The store {backend.url} has no run of this name",
        found=run,
        remedy=f"Did you mean {' or '.join(near)}?" if near else "It has none yet: `fmscale train` makes one.",
    )
