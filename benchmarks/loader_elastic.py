"""W5.elastic: a run that resumes at 8, 6, 16 and 1 ranks delivers the rows of a single rank, in the same order.

Ranks are processes on one node that read a real S3 server through one cache directory. For every received row the
comparison covers sample number, step, source, digest of the tokens, and pieces of documents.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Claim, peer_python, run_json
from benchmarks.peers.common import ROW_TOKENS
from benchmarks.peers.ours import write_dataset
from fmscale.data.provenance.delivery import order_hash, read_records
from tests.helpers.s3_server import S3Server

RANKS = (8, 6, 16, 1)
MIXTURES: dict[str, list[tuple[str, float]]] = {
    "1 source": [("one", 1.0)],
    "3 sources": [("one", 0.7), ("two", 0.2), ("three", 0.1)],
}
PACKINGS = ("stream",)
"""Packings of views."""
ROWS = {"one": 1500, "two": 700, "three": 300}
"""Rows of 8,194 bytes of each dataset: 20 MB; a run reads every unit."""
BATCH = 40
"""Rows of a step: 5 for each of 8 ranks, 6 or 7 for each of 6, 2 or 3 for each of 16. Doubled halfway."""


def elastic_claims(
    work: Path,
    server: S3Server,
    *,
    steps: int,
    ranks: Sequence[int] = RANKS,
    mixtures: Sequence[str] = tuple(MIXTURES),
) -> list[Claim]:
    """W5.elastic; `steps` for each number of ranks."""
    url = server.url(server.new_bucket())
    for seed, (name, rows) in enumerate(ROWS.items()):
        tokens = np.random.default_rng(seed).integers(0, 50000, (rows, ROW_TOKENS), dtype=np.uint16)
        path = work / f"elastic-{name}.u16"
        tokens.tofile(path)
        write_dataset(path, url, dataset=name)
    cells = []
    for mixture in mixtures:
        for packing in PACKINGS:
            folder = work / f"elastic-{mixture}-{packing}".replace(" ", "-")
            cells.append({"system": f"{mixture}, {packing}", **_cell(folder, url, mixture, steps, ranks)})
    wrong = sum(not equal(cell) for cell in cells)
    return [
        Claim(
            id="W5.elastic",
            what=f"of {len(cells)} cells of {'→'.join(map(str, ranks))} rank processes, those with another order "
            "than one rank has",
            unit="cells",
            ours=float(wrong),
            target="equal order in every cell",
            ok=not wrong,
            runs=[{**cell, "value": float(not equal(cell))} for cell in cells],
        )
    ]


def _cell(folder: Path, url: str, mixture: str, steps: int, ranks: Sequence[int]) -> dict[str, Any]:
    """Deliver elastically through a cache, and by a single rank without a cache; the rows of both."""
    phases = [[count, steps] for count in ranks]
    elastic = _node(folder / "elastic", url, mixture, phases, cache=str(folder / "cache"))
    whole = _node(folder / "whole", url, mixture, [[1, steps * len(ranks)]], cache=None)
    cached = sum(path.stat().st_blocks * 512 for path in (folder / "cache").rglob("*") if path.is_file())
    return {
        **compare(folder / "elastic", folder / "whole"),
        "cached_bytes": cached,
        "store_bytes": elastic["store_bytes"],
        "store_bytes_without_cache": whole["store_bytes"],
    }


def _node(folder: Path, url: str, mixture: str, phases: list[list[int]], cache: str | None) -> dict[str, Any]:
    folder.mkdir(parents=True)
    half = sum(steps for _, steps in phases) // 2
    spec = {
        "store": url,
        "sources": MIXTURES[mixture],
        "batch": [[0, BATCH], [half, 2 * BATCH]],
        "folder": str(folder),
        "cache": cache,
        "phases": phases,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return run_json([peer_python(), "-m", "benchmarks.peers.elastic", str(path)], timeout=300)


def compare(elastic: Path, whole: Path) -> dict[str, Any]:
    """Comparison of two folders' records: hashes, repeats, gaps, rows that differ in any column."""
    got, expected = (read_records(sorted(folder.glob("*.arrow"))) for folder in (elastic, whole))
    k = got["k"].to_numpy()
    distinct = len(np.unique(k))
    return {
        "rows": len(got),
        "expected_rows": len(expected),
        "duplicates": len(k) - distinct,
        "drops": len(expected) - distinct,
        "order_hash": order_hash(got),
        "expected_order_hash": order_hash(expected),
        "equal_rows": got.equals(expected),
    }


def equal(cell: dict[str, Any]) -> bool:
    """True if a cell's order is equal, and was read through the cache."""
    return (
        cell["equal_rows"]
        and cell["order_hash"] == cell["expected_order_hash"]
        and not cell["duplicates"]
        and not cell["drops"]
        and cell["cached_bytes"] > 0
    )
