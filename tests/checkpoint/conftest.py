"""A persist process costs 0.7 s to start; tests of other parts run its work in a thread."""

import uuid
from typing import Any

import pytest

from fmscale.checkpoint import saver
from fmscale.checkpoint.persist import worker
from fmscale.checkpoint.persist.worker import Worker
from fmscale.store.open import open_store
from tests.helpers.faulty_backend import FaultyBackend


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let savers do the persist process's work in a thread of this process."""
    monkeypatch.setattr(saver, "ProcessWriter", Worker)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the pauses."""
    monkeypatch.setattr(worker, "FIRST_PAUSE", 0.01)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, in_thread: None, quick: None) -> tuple[str, list[FaultyBackend]]:
    """A store in memory whose requests can be made to fail; the backends by rank, as workers open them."""
    made: list[FaultyBackend] = []

    def opened(url: str, **options: Any) -> FaultyBackend:
        made.append(FaultyBackend(open_store(url, **options)))
        return made[-1]

    monkeypatch.setattr(worker, "open_store", opened)
    return f"memory://{uuid.uuid4().hex}", made
