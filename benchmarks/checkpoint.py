"""`fmscale bench checkpoint`: what a save costs training, how fast it is durable, restores, and faults.

A state of fp32 tensors is spread over gloo ranks, which take steps: a fixed amount of arithmetic, then an
optimizer that writes all of the state. What a save costs is a window of steps with it less the same window
without it: an asynchronous save can hide its stall as slower steps, so only the sum counts. fsync is inside
"durable"; times are of the slowest rank; every save has its own folder; systems run interleaved, each in its own
processes. Limits are measured in the same run: fio (O_DIRECT) for the disk, one copy into warm memory for the
stall. With as many ranks as cores a background writer takes compute from training: what it takes is in the cost.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.checkpoint_faults import fault_claims
from benchmarks.harness import ROOT, Claim, Outcome, interleave, run_json, write_results

PACKAGES = ["torch", "numpy", "safetensors", "deepspeed", "obstore", "crc32c", "xxhash"]
OURS = ("fmscale", "fmscale_nooverlap", "fmscale_nodigests")
SAFE = ("torch_save_safe", "dcp_save_safe", "dcp_async_staged_safe", "dcp_process_safe")
"""Peers with a folder per step, synced files and folders, digests and a commit mark."""
UNSAFE_ASYNC = ("dcp_async", "dcp_async_kept", "dcp_async_staged", "dcp_process")
UNSAFE = ("torch_save", "dcp_save", "dcp_save_threads", "dcp_safetensors", "deepspeed")
RESTORED = ("fmscale", "torch_save", "dcp_save")
NO_FIO = "fio is not installed: apt-get install fio"
SMALLEST_COST = 1e-3
"""Seconds below which a cost is noise: ratios are taken of nothing smaller."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One state."""

    gigabytes: float
    """Of all ranks together, 10^9 bytes."""
    tensors: int
    """Of all ranks together."""
    ranks: int
    """Processes."""
    steps: int
    """In a window."""
    step_seconds: float
    """Arithmetic of a step, so that the slowest system is through before the window ends."""

    @property
    def name(self) -> str:
        """For ids."""
        return f"{self.gigabytes:g}GB.{self.tensors}t.{self.ranks}r"

    @property
    def options(self) -> list[str]:
        """Of the command line of a run."""
        return [
            f"--ranks={self.ranks}",
            f"--bytes={int(self.gigabytes * 1e9)}",
            f"--tensors={self.tensors}",
            f"--steps={self.steps}",
            f"--step-seconds={self.step_seconds}",
        ]


QUICK = (Cell(gigabytes=0.25, tensors=60, ranks=2, steps=8, step_seconds=0.1),)
FULL = (
    Cell(gigabytes=0.25, tensors=60, ranks=2, steps=10, step_seconds=0.2),
    Cell(gigabytes=1.0, tensors=60, ranks=2, steps=10, step_seconds=0.8),
    Cell(gigabytes=1.0, tensors=3000, ranks=4, steps=10, step_seconds=1.0),
    Cell(gigabytes=3.0, tensors=60, ranks=2, steps=10, step_seconds=2.0),
)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all claims; writes benchmarks/results/checkpoint.json. Returns the claims as in that file."""
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        work = Path(folder)
        for cell in QUICK if quick else FULL:
            claims += save_claims(work, cell, rounds=1 if quick else 3, quick=quick)
        claims += restore_claims(work, (QUICK if quick else FULL)[-1], rounds=1 if quick else 3)
        claims.append(incremental_claim(work, (QUICK if quick else FULL)[0]))
        claims += fault_claims(work, quick=quick)
    write_results("checkpoint", claims, quick=quick, packages=PACKAGES)
    return [vars(claim) for claim in claims]


def measured(work: Path, system: str, action: str, cell: Cell, *more: str) -> dict[str, Any]:
    """One run of one system; its folder is empty before, and afterwards unless `--keep` is said."""
    folder = work / system
    if action != "restore":
        shutil.rmtree(folder, ignore_errors=True)
    line = [sys.executable, "-m", "benchmarks.peers.checkpoint_run", system, action, f"--folder={folder}"]
    try:
        return run_json([*line, *cell.options, *more], timeout=900)
    finally:
        if "--keep" not in more:
            shutil.rmtree(folder, ignore_errors=True)


def fio(work: Path, cell: Cell, kind: str) -> float | None:
    """Bytes per second of the disk: fio with O_DIRECT, 1 MiB blocks, 8 in flight, a job a rank. None without fio."""
    if shutil.which("fio") is None:
        return None
    folder = work / "fio"
    folder.mkdir(exist_ok=True)
    line = ["fio", "--name=limit", f"--directory={folder}", f"--rw={kind}", "--direct=1", "--bs=1M"]
    line += ["--iodepth=8", "--ioengine=libaio", f"--numjobs={cell.ranks}", "--group_reporting"]
    line += [f"--size={int(cell.gigabytes * 1e9 / cell.ranks) >> 20}M", "--output-format=json"]
    line += ["--end_fsync=1"] if kind == "write" else []
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][kind]
    return float(job["bw_bytes"])


def save_claims(work: Path, cell: Cell, *, rounds: int, quick: bool) -> list[Claim]:
    """C1 to C3 for one state."""
    names = [*OURS, *SAFE[:3], *UNSAFE_ASYNC[2:]] if quick else [*OURS, *SAFE, *UNSAFE_ASYNC, *UNSAFE]
    repeats = "--repeats=2" if quick else "--repeats=3"
    limits = [fio(work, cell, "write")]
    copies = [measured(work, "fmscale", "memcpy", cell)]
    found = interleave({name: partial(measured, work, name, "save", cell, repeats) for name in names}, rounds)
    copies.append(measured(work, "fmscale", "memcpy", cell))
    limits.append(fio(work, cell, "write"))
    shutil.rmtree(work / "fio", ignore_errors=True)
    copy = median(run["seconds"] for one in copies for run in one["runs"])
    return [
        cost_claim(cell, found),
        blocking_claim(cell, found, "fmscale_nooverlap", "without overlap", copy, 1.3),
        blocking_claim(cell, found, "fmscale", "with overlap", copy, 0.1),
        durable_claim(cell, found, [one for one in limits if one is not None]),
    ]


def figures(outcome: Outcome | None, key: str) -> list[float]:
    """A figure of all repeats of all rounds."""
    return [float(one[key]) for run in (outcome.runs if outcome else []) for one in run["runs"]]


def middle(outcome: Outcome | None, key: str) -> float | None:
    """Their median."""
    found = figures(outcome, key)
    return median(found) if found else None


def rows(found: dict[str, Outcome], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Every measurement for the results file."""
    return [
        {"system": name, **{key: one[key] for key in keys}}
        for name, outcome in found.items()
        for run in outcome.runs
        for one in run["runs"]
    ]


def cost_claim(cell: Cell, found: dict[str, Outcome]) -> Claim:
    """C1: what a save costs training in all."""
    costs = {name: middle(outcome, "cost") for name, outcome in found.items()}
    ours, bare = costs["fmscale"], costs["fmscale_nodigests"]

    def best(names: Sequence[str]) -> float | None:
        values = [max(SMALLEST_COST, value) for name in names if (value := costs.get(name)) is not None]
        return min(values) if values else None

    safe, unsafe = best(SAFE), best(UNSAFE_ASYNC)
    claim = Claim(
        id=f"C1.total_cost.{cell.name}",
        what="stall and slower steps of one save",
        unit="s",
        ours=ours,
        peers={name: value for name, value in costs.items() if name not in OURS[:1]},
        target="<= 0.7 x the best equally safe peer; without digests <= 1.1 x the best unsafe asynchronous one",
        reasons={name: outcome.reason for name, outcome in found.items() if outcome.reason},
        runs=rows(found, ("cost", "stall", "longest_step", "idle", "window")),
    )
    if ours is not None and bare is not None and safe is not None and unsafe is not None:
        claim.ratio = ours / safe
        claim.ok = claim.ratio <= 0.7 and bare <= 1.1 * unsafe
    return claim


def blocking_claim(
    cell: Cell, found: dict[str, Outcome], system: str, how: str, copy: float, limit: float
) -> Claim:
    """C2: what the training thread waits, against one copy of the rank's state."""
    ours = middle(found[system], "stall")
    claim = Claim(
        id=f"C2.blocking.{'overlap' if system == 'fmscale' else 'copy'}.{cell.name}",
        what=f"wait of the training thread, {how}",
        unit="s",
        ours=ours,
        peers={name: middle(one, "stall") for name, one in found.items() if name not in OURS},
        limit=copy,
        target=f"<= {limit:g} x one copy",
        runs=rows({name: one for name, one in found.items() if name == system}, ("stall",)),
    )
    if ours is not None:
        claim.ratio = ours / copy
        claim.ok = claim.ratio <= limit
    return claim


def durable_claim(cell: Cell, found: dict[str, Outcome], limits: list[float]) -> Claim:
    """C3: bytes over the time from `save` until the commit, while training goes on."""
    size = cell.gigabytes * 1e9
    speeds = {
        name: size / value for name, one in found.items() if (value := middle(one, "durable")) is not None
    }
    claim = Claim(
        id=f"C3.durable.{cell.name}",
        what="bytes per second from the save to the commit, training going on",
        unit="B/s",
        ours=speeds.get("fmscale"),
        peers={name: speeds.get(name) for name in found if name != "fmscale"},
        limit=median(limits) if limits else None,
        target=">= 0.75 of fio",
        reasons={} if limits else {"limit": NO_FIO},
        runs=[*rows(found, ("durable",)), *({"system": "fio", "durable": size / one} for one in limits)],
    )
    if claim.ours is not None and claim.limit is not None:
        claim.ratio = claim.ours / claim.limit
        claim.ok = claim.ratio >= 0.75
    return claim


def restore_claims(work: Path, cell: Cell, *, rounds: int) -> list[Claim]:
    """C4: a new process reads what was saved, page cache cold."""
    reasons: dict[str, str] = {}
    for name in RESTORED:
        try:
            measured(work, name, "save", cell, "--repeats=0", "--keep", "--steps=1")
        except RuntimeError as error:
            reasons[name] = str(error)
    fio(work, cell, "write")
    limits = [fio(work, cell, "read")]
    names = [name for name in RESTORED if name not in reasons]
    found = interleave(
        {name: partial(measured, work, name, "restore", cell, "--keep") for name in names}, rounds
    )
    limits.append(fio(work, cell, "read"))
    for name in (*RESTORED, "fio"):
        shutil.rmtree(work / name, ignore_errors=True)
    speeds = {
        name: median(one["bytes"] / one["seconds"] for run in outcome.runs for one in run["runs"])
        for name, outcome in found.items()
        if outcome.runs
    }
    known = [one for one in limits if one is not None]
    claim = Claim(
        id=f"C4.restore.{cell.name}",
        what="bytes per second of a cold restore, every chunk checked",
        unit="B/s",
        ours=speeds.get("fmscale"),
        peers={name: speeds.get(name) for name in RESTORED[1:]},
        limit=median(known) if known else None,
        target=">= 0.75 of fio",
        reasons=reasons if known else {**reasons, "limit": NO_FIO},
        runs=rows(found, ("seconds", "ratio")),
    )
    if claim.ours is not None and claim.limit is not None:
        claim.ratio = claim.ours / claim.limit
        claim.ok = claim.ratio >= 0.75
    ratio = max(figures(found.get("fmscale"), "ratio"), default=None)
    read = Claim(
        id=f"C4.read.{cell.name}",
        what="bytes read over bytes needed",
        unit="",
        ours=ratio,
        target="<= 1.05",
        ratio=ratio,
        ok=ratio is not None and ratio <= 1.05,
    )
    return [claim, read]


def incremental_claim(work: Path, cell: Cell) -> Claim:
    """C5: a second save after a tenth of the state changed."""
    found = measured(work, "fmscale_incremental", "second", cell)["runs"][0]
    ratio = found["written"] / found["changed"]
    return Claim(
        id=f"C5.incremental.{cell.name}",
        what="bytes of tensors written by the second save, a tenth changed",
        unit="B",
        ours=found["written"],
        limit=found["changed"],
        ratio=ratio,
        target="<= 1.05 x the bytes that changed",
        ok=ratio <= 1.05,
    )
