"""Files of the product whose functions a run enters: in this process, and in the Python processes that it starts."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
RECORDER = """
import os, sys, threading

seen = set()

def enter(frame, event, argument):
    code = frame.f_code
    # CO_OPTIMIZED: bodies of functions, not of modules and classes.
    if event == "call" and code.co_flags & 1 and code.co_filename not in seen:
        seen.add(code.co_filename)
        file = os.open(PLACE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (code.co_filename + chr(10)).encode())
        os.close(file)

threading.setprofile(enter)
sys.setprofile(enter)
"""


def entered(run: Callable[[], object]) -> set[str]:
    """Paths from the root of the repository. Earlier threads are not traced."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "entered")
        recorder = f"PLACE = {str(place)!r}\n{RECORDER}"
        Path(folder, "sitecustomize.py").write_text(recorder)
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        try:
            with mock.patch.dict(os.environ, PYTHONPATH=path):
                exec(compile(recorder, "recorder", "exec"), {})
                run()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        files = {Path(line) for line in place.read_text().splitlines()}
    return {str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts}
