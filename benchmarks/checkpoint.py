"""`fmscale bench checkpoint`: the cost of a save to training, its time to durability, restores, and faults.

A state of fp32 tensors is spread over gloo ranks, which take steps: a fixed amount of arithmetic, then an optimizer
that writes all of the state. The cost of a save is the time of a window of steps with it less the time of the same
window without it: an asynchronous save can hide its stall as slower steps, so only the sum counts. "durable" includes
fsync; times are those of the slowest rank; every save has its own folder; systems take turns, each in its own
processes. Limits are measured in the same run: fio (O_DIRECT, synced at the end, a job a rank, the same bytes) for the
disk, one copy into warm memory for the stall; fio has the machine to itself, a save shares it with training. Restores
are timed in processes with the imports of a training run, from the call until the last tensor is filled; the same calls
drop the page cache for all systems. With as many ranks as cores a background writer takes compute from training: the
cost includes this.
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
UNSAFE = ("torch_save", "dcp_save", "dcp_safetensors", "deepspeed")
SOME = (*OURS, *SAFE[:3], *UNSAFE_ASYNC[2:])
"""The strongest of each kind."""
FEW = (*OURS, "torch_save_safe", "dcp_async_staged")
"""Peers for states that would take minutes with all peers."""
ALONE = OURS[:2]
"""Systems for sizes at which only fmscale is shown."""
NO_FIO = "fio is not installed: apt-get install fio"
SMALLEST_COST = 1e-3
"""Seconds below which a cost is noise and enters no ratio."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A state and its measurements."""

    gigabytes: float
    """Size over all ranks, 10^9 bytes."""
    tensors: int
    """Number over all ranks."""
    ranks: int
    """Number of processes."""
    steps: int
    """Steps of a window."""
    step_seconds: float
    """Arithmetic of a step, so that the slowest system finishes before the window ends."""
    systems: tuple[str, ...]
    """Systems that save it."""
    repeats: int
    """Counted saves of each system in a turn."""
    turns: int = 1
    """Turns of every system."""
    restored: tuple[str, ...] = ()
    """Systems that restore it."""

    @property
    def name(self) -> str:
        """Name in ids."""
        return f"{self.gigabytes:g}GB.{self.tensors}t.{self.ranks}r"

    @property
    def options(self) -> list[str]:
        """Options of a run's command line."""
        return [
            f"--ranks={self.ranks}",
            f"--bytes={int(self.gigabytes * 1e9)}",
            f"--tensors={self.tensors}",
            f"--steps={self.steps}",
            f"--step-seconds={self.step_seconds}",
            f"--repeats={self.repeats}",
        ]


RESTORED = ("fmscale", "torch_save", "dcp_save")


def _cell(gigabytes: float, tensors: int, ranks: int, step_seconds: float, **more: Any) -> Cell:
    cell = {"steps": 8, "repeats": 3, "systems": ALONE, "restored": OURS[:1], **more}
    return Cell(gigabytes=gigabytes, tensors=tensors, ranks=ranks, step_seconds=step_seconds, **cell)


QUICK = (_cell(0.25, 60, 2, 0.1, systems=SOME, repeats=4, restored=RESTORED),)
FULL = (
    _cell(
        0.25,
        60,
        2,
        0.1,
        systems=(*OURS, *SAFE, *UNSAFE_ASYNC, *UNSAFE),
        repeats=2,
        turns=2,
        restored=RESTORED,
    ),
    _cell(0.25, 3000, 4, 0.15),
    _cell(1.0, 60, 2, 0.25),
    _cell(1.0, 3000, 4, 0.3, systems=SOME, repeats=2, restored=RESTORED),
    _cell(3.0, 60, 2, 0.8, systems=FEW, repeats=2, restored=RESTORED),
    _cell(3.0, 3000, 4, 0.5, repeats=2),
)
"""Every size, tensor count and number of ranks of fmscale, and the peers that fit into half an hour and 12 GB of
memory.
"""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all claims; writes benchmarks/results/checkpoint.json. Returns the claims as in that file."""
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        work = Path(folder)
        for cell in QUICK if quick else FULL:
            claims += save_claims(work, cell)
            claims += restore_claims(work, cell)
        claims.append(incremental_claim(work, (QUICK if quick else FULL)[0]))
        claims += fault_claims(work, quick=quick)
    write_results("checkpoint", claims, quick=quick, packages=PACKAGES)
    return [vars(claim) for claim in claims]


def measured(work: Path, system: str, action: str, cell: Cell, *more: str) -> dict[str, Any]:
    """One run of one system; its folder is empty before, and also afterwards without `--keep`."""
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


def save_claims(work: Path, cell: Cell) -> list[Claim]:
    """C1 (if there are peers) to C3 for one state."""
    limits = [fio(work, cell, "write") for _ in range(2)]
    # The copy takes its turns like a system: it is compared with stalls of tens of milliseconds.
    runs = {name: partial(measured, work, name, "save", cell) for name in cell.systems}
    found = interleave({"copy": partial(measured, work, "fmscale", "memcpy", cell), **runs}, cell.turns)
    copies = [*found.pop("copy").runs, measured(work, "fmscale", "memcpy", cell)]
    limits += [fio(work, cell, "write") for _ in range(2)]
    shutil.rmtree(work / "fio", ignore_errors=True)
    copy = median(run["seconds"] for one in copies for run in one["runs"])
    return [
        *([cost_claim(cell, found)] if cell.systems != ALONE else []),
        blocking_claim(cell, found, "fmscale_nooverlap", "without overlap", copy, 1.3),
        blocking_claim(cell, found, "fmscale", "with overlap", copy, 0.1),
        durable_claim(cell, found, [one for one in limits if one is not None]),
    ]


def figures(outcome: Outcome | None, key: str) -> list[float]:
    """Values of a figure in all repeats of all rounds."""
    return [float(one[key]) for run in (outcome.runs if outcome else []) for one in run["runs"]]


def middle(outcome: Outcome | None, key: str) -> float | None:
    """Median of a figure."""
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
    """C1: the total cost of a save to training."""
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


def blocking_claim(cell: Cell, found: dict[str, Outcome], system: str, how: str, copy: float, limit: float) -> Claim:
    """C2: waits of the training thread, against one copy of the rank's state."""
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
    speeds = {name: size / value for name, one in found.items() if (value := middle(one, "durable")) is not None}
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


def restore_claims(work: Path, cell: Cell) -> list[Claim]:
    """C4: a new process reads the saved state, page cache cold."""
    reasons: dict[str, str] = {}
    for name in cell.restored:
        try:
            measured(work, name, "save", cell, "--repeats=0", "--keep", "--steps=1", "--step-seconds=0")
        except RuntimeError as error:
            reasons[name] = str(error)
    fio(work, cell, "write")
    limits = [fio(work, cell, "read") for _ in range(2)]
    names = [name for name in cell.restored if name not in reasons]
    found = interleave({name: partial(measured, work, name, "restore", cell, "--keep") for name in names}, 3)
    limits += [fio(work, cell, "read") for _ in range(2)]
    for name in (*cell.restored, "fio"):
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
        peers={name: speeds.get(name) for name in cell.restored[1:]},
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
    found = measured(work, "fmscale", "second", cell)["runs"][0]
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
