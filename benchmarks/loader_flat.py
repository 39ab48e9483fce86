"""W13: samples of mixed lengths in flat forwards: padding, the fullest node, bytes read from the store, host memory.

Every node of a run is a loader of its own, one rank a node, that delivers an epoch from a local store without a cache,
except its last steps, which the loader has read ahead by then. Bytes are the loaders' own requests, summed over the
nodes, over the bytes of all records' texts. Memory is measured in a process for each window: the most anonymous and
shared memory while an epoch is delivered, beyond that before the loader was opened.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Claim, peer_python, run_json
from benchmarks.peers.flat import MIB, SAMPLES, dataset_of, deliver
from fmscale.data.reading.prefetch import MOST_BLOCKS

TEXTS, PICTURES = (200, 40_000), (10_000, 60_000)
"""Bytes of a record: texts as in a web corpus, lognormal; the sizes of small pictures, uniform."""
RECORDS = {False: (32_000, 3_200), True: (3_200, 640)}
"""Records of each kind."""
NODES = ((1, SAMPLES), (2, SAMPLES), (4, SAMPLES), (8, SAMPLES), (8, 5 * SAMPLES))
"""(nodes, samples of a step)."""
WINDOWS = (1, 64, 2048)
BUDGET = 32 * MIB
"""`memory_bytes` of the runs for memory: a quarter of the texts."""


def flat_claims(work: Path, *, quick: bool) -> list[Claim]:
    """W13.padding, W13.level, W13.bytes and W13.memory."""
    rng = np.random.default_rng(0)
    texts, pictures = RECORDS[quick]
    sizes = {
        "texts": np.clip(rng.lognormal(np.log(2500), 1.0, texts), *TEXTS).astype(int),
        "pictures": rng.integers(*PICTURES, pictures),
    }
    store = str(work / "flat")
    for name, lengths in sizes.items():
        parts = np.array_split(lengths, 4)
        dataset_of(store, name, [pa.table({"text": ["x" * n for n in part.tolist()]}) for part in parts])
    runs: list[dict[str, Any]] = []
    for name, lengths in sizes.items():
        for nodes, samples in NODES if name == "texts" else NODES[-2:-1]:
            steps = len(lengths) // samples - MOST_BLOCKS
            each = [deliver(store, name, node, nodes, samples, steps) for node in range(nodes)]
            run = {"system": f"{name}, {nodes} x {samples // nodes}", "nodes": nodes}
            runs.append(run | together(each, int(lengths.sum())))
    return [*dealt_claims(runs), _memory(store, texts)]


def together(nodes: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """A run's figures from those of its nodes; `total` are the bytes of all records."""
    tokens = np.array([node["tokens"] for node in nodes])  # [nodes, steps]
    positions = sum(sum(node["positions"]) for node in nodes)
    longest = np.max([node["longest"] for node in nodes], axis=0)
    samples = np.sum([node["samples"] for node in nodes], axis=0)
    # A sample that is longer than a node's part of the step lies somewhere.
    level = (tokens.max(0) / tokens.mean(0))[longest <= 1.05 * tokens.mean(0)]
    return {
        "padding": 1 - float(tokens.sum()) / positions,
        "padded": 1 - float(tokens.sum() / (longest * samples).sum()),
        "bytes": sum(node["read"] for node in nodes) / total,
        "level": float(np.median(level)),
        "level_worst": float(level.max()),
        "level_above": float((level > 1.05).mean()),
    }


def dealt_claims(runs: list[dict[str, Any]]) -> list[Claim]:
    """Padding, level and bytes; the worst run counts."""
    padding = max(run["padding"] for run in runs)
    several = [run for run in runs if run["nodes"] > 1]
    level = max(run["level_worst"] for run in several)
    most = {run["system"]: run["bytes"] / (1.3 if run["nodes"] > 1 else 1.1) for run in runs}
    return [
        Claim(
            id="W13.padding",
            what="padding of flat forwards of mixed lengths, worst run (peer column: a step padded to its longest)",
            unit="fraction",
            ours=padding,
            peers={"padded": min(run["padded"] for run in runs)},
            target="<= 0.04",
            ok=padding <= 0.04,
            runs=[run | {"value": run["padding"]} for run in runs],
        ),
        Claim(
            id="W13.level",
            what="tokens of the fullest node over the mean, worst step without a sample above 1.05 x the mean",
            unit="ratio",
            ours=level,
            target="<= 1.05",
            ok=level <= 1.05,
            runs=[run | {"value": run["level_worst"]} for run in several],
        ),
        Claim(
            id="W13.bytes",
            what="bytes read over bytes of the samples, nodes without peers, worst run",
            unit="ratio",
            ours=max(run["bytes"] for run in runs),
            target="<= 1.1 on one node, <= 1.3 on 2, 4 and 8",
            ok=max(most.values()) <= 1,
            runs=[run | {"value": run["bytes"]} for run in runs],
        ),
    ]


def _memory(store: str, records: int) -> Claim:
    """Host memory at each window, over the budget and two steps."""
    runs: list[dict[str, Any]] = []
    for window in WINDOWS:
        command = [peer_python(), "-m", "benchmarks.peers.flat", store, "texts", str(window), str(BUDGET)]
        found = run_json([*command, str(records // SAMPLES)], timeout=300)
        bound = BUDGET + 2 * found["step_bytes"]
        runs.append({"system": f"window {window}", "value": found["held"] / bound} | found)
    worst = max(run["value"] for run in runs)
    return Claim(
        id="W13.memory",
        what=f"memory of a loader of flat forwards over its budget of {BUDGET // MIB} MiB and two steps, worst window",
        unit="ratio",
        ours=worst,
        target="<= 1",
        ok=worst <= 1,
        runs=runs,
    )
