"""Claims about plan and resume: costs that must not grow with the dataset, exactness after kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.harness import ROOT, Claim, run_json

RECORD_BYTES = 16


def plan_claims(*, repeats: int) -> list[Claim]:
    """W3.plan and W10.index."""
    program = [sys.executable, "-m", "benchmarks.peers.planning"]
    found = {
        rows: [run_json([*program, "plan", str(rows)], timeout=60) for _ in range(repeats)] for rows in (10**6, 10**9)
    }
    seconds = {rows: median(run["seconds"] for run in runs) for rows, runs in found.items()}
    held = {rows: median(run["bytes"] for run in runs) for rows, runs in found.items()}
    plan = Claim(
        id="W3.plan",
        what="open and seek a view of 10^9 rows (peer column: the same at 10^6 rows)",
        unit="ms",
        ours=seconds[10**9] * 1e3,
        peers={"at 10^6 rows": seconds[10**6] * 1e3},
        ratio=seconds[10**9] / seconds[10**6],
        target="<= 5 ms, <= 5 MB, equal at 10^6 and 10^9",
        ok=seconds[10**9] <= 5e-3 and held[10**9] <= 5e6 and 0.5 < seconds[10**9] / seconds[10**6] < 2.0,
        runs=[{"system": f"{rows} rows", **run} for rows, runs in found.items() for run in runs],
    )
    runs = [run_json([*program, "manifest", "1000000"], timeout=300) for _ in range(repeats)]
    index = Claim(
        id="W10.index",
        what="open an index of 10^6 shards, then locate 1,000 tokens",
        unit="ms",
        ours=median(run["seconds"] for run in runs) * 1e3,
        target="<= 40 MB file, <= 20 MB resident, <= 10 ms to open",
        ok=all(run["file_bytes"] <= 40e6 and run["resident_bytes"] <= 20e6 and run["seconds"] <= 0.01 for run in runs),
        runs=[{"system": "fmscale", **run} for run in runs],
    )
    return [plan, index]


def resume_claims(work: Path, corpus: Path, *, quick: bool) -> list[Claim]:
    """W4.resume: kill -9 at 10, 50 and 90 % (quick: 50) of an epoch; the delivered rows equal those of a whole run."""
    rows, kills = (4096, (50,)) if quick else (32768, (10, 50, 90))
    store = str(work / "fmscale")
    whole = work / "resume-whole"
    whole.mkdir()
    run_json(_command(store, whole, rows), timeout=300)
    expected = (whole / "rows").read_bytes()
    runs = []
    for percent in kills:
        folder = work / f"resume-{percent}"
        folder.mkdir()
        _kill_at(_command(store, folder, rows), folder / "rows", rows * RECORD_BYTES * percent // 100)
        again = run_json(_command(store, folder, rows), timeout=300)
        got = (folder / "rows").read_bytes()
        ks = {got[at : at + 8] for at in range(0, len(got), RECORD_BYTES)}
        runs.append(
            {
                "system": f"killed at {percent} %",
                "value": again["first_batch_seconds"],
                "duplicates": len(got) // RECORD_BYTES - len(ks),
                "drops": len(expected) // RECORD_BYTES - len(ks),
                "equal_order": got == expected,
            }
        )
    seconds = median(run["value"] for run in runs)
    exact = all(run["equal_order"] and not run["duplicates"] and not run["drops"] for run in runs)
    return [
        Claim(
            id="W4.resume",
            what=f"kill -9 and resume at {'/'.join(map(str, kills))} %: seconds to the next batch",
            unit="s",
            ours=seconds,
            target="0 duplicates, 0 drops, equal order; <= 0.3 s + one fetch",
            ok=exact and seconds <= 0.35,
            runs=runs,
        )
    ]


def _command(store: str, folder: Path, rows: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.resume", store, str(folder), str(rows)]


def _kill_at(command: list[str], path: Path, size: int) -> None:
    """Start the process and kill it when the file has that size."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not path.exists() or path.stat().st_size < size:
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode} before it could be killed")
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
