"""State of a quickstart: settings and screen while it runs, its corpus and the time of each act between tries."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fmscale.errors import ConfigError, FormatError
from fmscale.quickstart.settings import QuickstartSettings

FORMAT_VERSION = 1


class Screen(Protocol):
    """Shows progress."""

    def begin(self, act: str) -> None:
        """Show the begin of an act."""

    def advance(self, act: str, done: float, total: float, note: str = "") -> None:
        """Show the progress of an act."""

    def end(self, act: str, note: str) -> None:
        """Show the end of an act; `note` sums the act up."""

    def tell(self, words: str) -> None:
        """Show an event."""


class QuickstartState:
    """A running quickstart: settings, screen, and the state that is kept in FOLDER/quickstart.json."""

    def __init__(self, settings: QuickstartSettings, screen: Screen) -> None:
        """Raises ConfigError if the folder has a quickstart of another corpus, store or config."""
        self.settings, self.screen = settings, screen
        self._path = settings.folder / "quickstart.json"
        self._choices = {
            "corpus": sorted(str(Path(one).absolute()) if Path(one).exists() else one for one in settings.corpus),
            "store": settings.store,
            "config": settings.config,
        }  # fmt: skip
        before = self._read()
        self.acts: dict[str, float] = before.get("acts", {})
        """Seconds of each act, over all tries."""
        self.cpu: dict[str, float] = before.get("cpu", {})
        """CPU seconds of each act, ranks and writers included: a shared machine does not change it."""
        for name, value in self._choices.items():
            if before and before[name] != value:
                raise ConfigError(
                    f"{settings.folder} has a quickstart with another {name}",
                    found=f"{before[name] or 'the standard library'}, now {value or 'the standard library'}",
                    remedy="Give another --folder for this one.",
                )
        self._write()

    @contextmanager
    def act(self, name: str) -> Iterator[None]:
        """Begin an act on the screen, and add the block's time to the act's time, also if the block fails."""
        self.screen.begin(name)
        began, busy = time.monotonic(), _cpu_seconds()
        try:
            yield
        finally:
            self.acts[name] = self.acts.get(name, 0.0) + time.monotonic() - began
            self.cpu[name] = self.cpu.get(name, 0.0) + _cpu_seconds() - busy
            self._write()

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise FormatError(
                f"{self._path} is damaged", found=str(error), remedy="Delete this file; the rest is in the store."
            ) from error  # fmt: skip
        if state.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{self._path} was written by another fmscale",
                found=state.get("format_version"),
                remedy="Give another --folder.",
            )
        return state

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".json.new")
        state = {"format_version": FORMAT_VERSION, **self._choices, "acts": self.acts, "cpu": self.cpu}
        beside.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        beside.replace(self._path)


def _cpu_seconds() -> float:
    """CPU time of this process and of its ended child processes."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
