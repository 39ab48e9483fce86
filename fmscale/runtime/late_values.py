"""Values of the ranks' store that are not there yet.

A call that waits in the store hears no signal, and looks from time to time are requests: of 512 ranks that came to a
barrier at moments of their own, 3.5 a rank and barrier came too early. So a thread waits, with a connection of its own.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any


class LateValues:
    """Reads values in a thread. After `drop` the next read has another connection, as the last one may still wait."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._own: Any = None

    def connect(self) -> Any:
        """The connection."""
        self._own = self._own or self._store.clone()
        return self._own

    def ask(self, keys: Sequence[str], seconds: float) -> "Future[list[bytes]]":
        """The values of `keys` once all are there; or torch's DistError, after `seconds` or without a server."""
        own = self.connect()
        own.set_timeout(timedelta(seconds=seconds))
        answer: Future[list[bytes]] = Future()
        threading.Thread(target=_read, args=(own, list(keys), answer), name="late-values", daemon=True).start()
        return answer

    def drop(self) -> None:
        """Give up what was asked last."""
        self._own = None


def _read(store: Any, keys: list[str], answer: "Future[list[bytes]]") -> None:
    try:
        answer.set_result(store.multi_get(keys))
    except Exception as error:
        answer.set_exception(error)
