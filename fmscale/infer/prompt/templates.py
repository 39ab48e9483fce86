"""Templates with values. A template is foreign code: a sandbox renders it, in a process with limits."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmscale.errors import ConfigError

PROCESS = Path(__file__).with_name("render_process.py")
SECONDS = 5
"""CPU seconds of a call; a thousand templates have one more."""
MEMORY = 2**30
"""Bytes of address space of the process."""
CHARACTERS = 2**22
"""Most characters of a result."""


class Job(NamedTuple):
    """A template with the values of its names."""

    where: str
    """Name for messages: the file, the key, the document."""
    template: str
    values: Mapping[str, Any]
    chat: bool = False
    """True for a chat template: blocks take the white space around them away."""


def render(jobs: Sequence[Job]) -> list[Any]:
    """The text of each template, or the value of a template that is one expression: `{{ choices }}` may be a list.

    Raises ConfigError for a template that fails, does not end, or gives too much.
    """
    if not jobs:
        return []
    limits = {"seconds": SECONDS + len(jobs) // 1000, "memory": MEMORY, "characters": CHARACTERS}
    lines = [limits, *({"template": job.template, "values": dict(job.values), "chat": job.chat} for job in jobs)]
    done = subprocess.run(
        [sys.executable, "-I", str(PROCESS)],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for job, result in zip(jobs, results, strict=False):
        if "error" in result:
            raise ConfigError(
                f"{job.where}: the template fails",
                found=result["error"],
                remedy="Use the fields that the document has, and correct the template.",
            )
    if len(results) < len(jobs):
        raise ConfigError(
            f"{jobs[len(results)].where}: the template did not end within {limits['seconds']} CPU seconds",
            found=done.stderr[-200:] or f"exit status {done.returncode}",
            remedy="Shorten its loops.",
        )
    return [result["value"] for result in results]
