"""Acts of a campaign that hangs, and of a campaign that fails, for its process to import at once."""

import signal
from collections.abc import Iterator
from pathlib import Path

from benchmarks.campaign.outcome import Outcome


def hang(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """Give an outcome, and never another."""
    yield Outcome(count=target)
    signal.pause()


def fail(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """Give an outcome, and fail."""
    yield Outcome(count=target)
    raise ValueError(folder.name)
