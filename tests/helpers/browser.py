"""Headless Chromium, told what to do over the two pipes of its DevTools protocol."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


class Page:
    """A page of the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._rest, self._session = 0, b"", ""
        self.faults: list[str] = []
        """What the page wrote to its console, and its errors."""
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **values: Any) -> Any:
        """The result of a command."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": values}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.faults.append(json.dumps(message["params"]))

    def value(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, its result."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true, at a frame of the page."""
        self.value(
            f"new Promise((done) => {{ const look = () => ({script}) ? done() : setTimeout(look, 5); look(); }})"
        )

    def type_in(self, text: str) -> None:
        """Type a text, and Enter."""
        self.tell("Input.insertText", text=text)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.tell("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **enter)

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """An empty page of a browser with a new profile."""
    assert CHROMIUM is not None
    theirs, commands = os.pipe()
    answers, said = os.pipe()
    # Chromium reads commands from 3 and writes to 4
    start = f'exec 3<&{theirs} 4>&{said} {theirs}<&- {said}>&-; exec "$@"'
    words = ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    with subprocess.Popen(words, pass_fds=(theirs, said), stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        os.close(said)
        try:
            yield Page(commands, answers)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)
