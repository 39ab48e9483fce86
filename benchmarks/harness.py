"""Shared by all benchmarks: one process a measurement, interleaved, medians and spread, one JSON schema.

{"name", "quick", "commit", "machine", "versions", "claims": [
    {"id", "what", "unit", "ours", "peers": {name: value | null}, "limit", "ratio", "target", "ok",
     "reasons": {peer: why it did not run}, "runs": [{"system", "value"}]}]}
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fmscale.runtime.provenance import this_machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
"""Environment of the peers (`make bench-env`), whose pins conflict with fmscale's; fmscale runs in it too."""


@dataclass(kw_only=True)
class Claim:
    """One line of a results table: a measurement, its peers, and its target."""

    id: str
    """Name in the targets."""
    what: str
    """Description of the measurement."""
    unit: str
    """Unit of all values."""
    ours: float | None
    """Median of our runs; None if it was not measured."""
    peers: dict[str, float | None] = field(default_factory=dict)
    """Median of each peer's runs; None with a reason if it did not run."""
    limit: float | None = None
    """The roofline measured in the same run."""
    ratio: float | None = None
    """Value that `target` bounds, usually fmscale over the limit or over the best peer."""
    target: str = ""
    """Target in words."""
    ok: bool = False
    """True if the target is met."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Reasons for peers without a value."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Every single measurement, in its order."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All runs of one system."""

    runs: list[dict[str, Any]]
    """Output of each run."""
    reason: str | None
    """Reason for missing runs."""

    def median(self, value: Callable[[dict[str, Any]], float]) -> float | None:
        """Median of a value over the runs."""
        return statistics.median(map(value, self.runs)) if self.runs else None


class TooLong(RuntimeError):
    """A process did not end within its time."""


def run_json(command: list[str], *, timeout: float, env: Mapping[str, str] | None = None) -> Any:
    """Run a process that prints JSON as its last line. Raises RuntimeError with the end of its output; a process that
    does not end in time is killed, and the error is a TooLong.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TooLong(f"no end within {timeout:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return json.loads(lines[-1])


def interleave(
    systems: Mapping[str, Callable[[], dict[str, Any]]], repeats: int, say: Callable[[str], None] = print
) -> dict[str, Outcome]:
    """Run every system once, then all again, `repeats` times; a system that fails is not run again."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    reasons: dict[str, str | None] = dict.fromkeys(systems)
    for repeat in range(repeats):
        for name, run in systems.items():
            if reasons[name]:
                continue
            try:
                runs[name].append(run())
            except RuntimeError as error:
                reasons[name] = str(error)
            say(f"{repeat + 1}/{repeats} {name}: {reasons[name] or 'done'}")
    return {name: Outcome(runs=runs[name], reason=reasons[name]) for name in systems}


def write_results(
    name: str,
    claims: list[Claim],
    *,
    quick: bool,
    packages: list[str],
    part: bool = False,
    out: Path | None = None,
    peers: str | None = None,
) -> Path:
    """Write benchmarks/results/NAME.json; NAME.quick.json for a quick run, NAME.part.json for some of the claims (git
    ignores both). `peers` is the interpreter whose packages are named; that of the bench environment by default.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    document = {
        "name": name,
        "quick": quick,
        "commit": commit.stdout.strip(),
        "machine": this_machine(),
        # in the environment that the feeds run in
        "versions": run_json([peers or peer_python(), "-m", "benchmarks.versions", *packages], timeout=60),
        "claims": [asdict(claim) for claim in claims],
    }
    kind = ".part" if part else ".quick" if quick else ""
    path = out or RESULTS / f"{name}{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def peer_python() -> str:
    """The interpreter that has the peers: the bench environment, or this environment."""
    return str(PEER_PYTHON) if PEER_PYTHON.exists() else sys.executable
