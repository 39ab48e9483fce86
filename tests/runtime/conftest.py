"""A stop that was told."""

import os
import signal
from collections.abc import Iterator

import pytest

from fmscale.runtime import group, waits
from fmscale.runtime.stop import StopFlag


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopFlag]:
    """A flag that SIGTERM has set; waits that observe it end at once."""
    for module in (waits, group):
        monkeypatch.setattr(module, "STOP_SECONDS", 0.0)
    flag = StopFlag().install()
    os.kill(os.getpid(), signal.SIGTERM)
    yield flag
    flag.remove()
