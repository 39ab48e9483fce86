"""The lock file of a killed build does not block later builds for ever."""

import os
import threading
import time
from pathlib import Path

from fmscale.train.engine.cpu_adam import STALE_SECONDS, clear_stale


def test_an_old_lock_is_removed_and_a_young_one_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    clear_stale(lock)
    lock.touch()
    os.utime(lock, (0, time.time() - STALE_SECONDS - 1))
    clear_stale(lock)
    assert not lock.exists()

    lock.touch()
    waiting = threading.Thread(target=clear_stale, args=(lock,), kwargs={"pause": 0.01}, daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert lock.exists()
    lock.unlink()
    waiting.join(30.0)
    assert not waiting.is_alive()
