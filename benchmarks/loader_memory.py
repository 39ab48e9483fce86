"""W9.memory: memory that a further rank adds on a node, beyond its batch buffers.

Ranks are processes. /proc/PID/smaps_rollup of each is read twice: after the imports of torch and fmscale, which any
trainer has, and after an epoch, while the loader still runs. The difference is the loader's memory; PSS counts a page
that n processes share as 1/n. Pages of files are left out: a library's pages count as a whole once the last other
process that maps them ends, which moved a figure of 14 MB by 6 MB on a busy machine.

The node's host memory for units is a setting (`memory_bytes`). Its ranks split it here, as each needs 1/n of a shuffle
window: the sum over the ranks then grows only by a rank's own memory, the compared value.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Claim, peer_python

NODE_MEMORY = 40 * 2**20
"""Host memory for units of all ranks together: 152 units, with a window of 128; the loaders use all of it."""
LIMIT = 1e6
TIMEOUT = 120.0


def memory_claims(
    store: str, *, quick: bool, cache: str = "-", ranks: Sequence[int] = (1, 2, 4), batches: int | None = None
) -> list[Claim]:
    """W9.memory on the dataset `corpus` of a store; `batches` of 8 rows are delivered on all ranks together."""
    batches = batches or (1024 if quick else 8192)
    runs: list[dict[str, Any]] = []
    for _ in range(1 if quick else 3):
        for count in ranks:
            runs.append(node(store, count, NODE_MEMORY // count, batches // count, cache))
    same = [] if quick else [node(store, ranks[-1], NODE_MEMORY, batches, cache)]
    added = added_per_rank(runs)
    return [
        Claim(
            id="W9.memory",
            what=f"PSS that a rank adds to a node of {ranks[0]} to {ranks[-1]}, beyond its batch buffers, the "
            "node's memory for units being split (peer column: all of a rank's loader, units included)",
            unit="bytes",
            ours=added,
            peers={"a rank's whole loader": runs[-1]["loader_bytes"] / runs[-1]["ranks"]},
            target="< 1 MB",
            ok=added < LIMIT,
            runs=[{**run, "value": run["loader_bytes"]} for run in runs]
            + [{**run, "system": f"{run['system']}, not split", "value": run["loader_bytes"]} for run in same],
        )
    ]


def added_per_rank(runs: Sequence[dict[str, Any]]) -> float:
    """Slope of the sum of the loaders' PSS without batch buffers over the number of ranks, least squares."""
    x = [run["ranks"] for run in runs]
    y = [run["loader_bytes"] - run["batch_bytes"] for run in runs]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle_x) ** 2 for a in x)


def node(store: str, ranks: int, memory: int, batches: int, cache: str = "-") -> dict[str, Any]:
    """Run a node's ranks side by side; bytes over all of them. Raises RuntimeError if one fails."""
    command = [peer_python(), "-m", "benchmarks.peers.rank", store]
    processes = []
    try:
        for rank in range(ranks):
            arguments = [str(rank), str(ranks), str(memory), str(batches), cache]
            processes.append(
                subprocess.Popen(
                    [*command, *arguments],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in processes:
            _answer(process)
        before = [pss(process.pid) for process in processes]
        for process in processes:
            _go_on(process)
        answers = [_answer(process) for process in processes]
        after = [pss(process.pid) for process in processes]
        for process in processes:
            _go_on(process)
            process.wait(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
    return {
        "system": f"{ranks} rank{'s' * (ranks > 1)}",
        "ranks": ranks,
        "loader_bytes": sum(after) - sum(before),
        "batch_bytes": sum(answer["batch_bytes"] for answer in answers),
        "unit_memory_bytes": memory * ranks,
        "imported_bytes": sum(before),
    }


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes, without pages of files. Raises RuntimeError if none is told."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    if len(sizes) != 2:
        raise RuntimeError(f"no PSS of process {pid}")
    return sum(sizes)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a rank ended: {process.stderr.read().strip()[-400:]}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
