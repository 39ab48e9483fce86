"""A persist process costs 0.7 s to start; what is not about the process is tested with its work in a thread."""

import pytest

from fmscale.checkpoint import saver
from fmscale.checkpoint.writer import ThreadWriter


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Savers do the persist process's work in a thread of this process."""
    monkeypatch.setattr(saver, "ProcessWriter", ThreadWriter)
