"""W1.over_cache: the shuffled feed under a real memory limit, with data larger than the page cache.

Every system runs alone in a fresh cgroup with a dropped page cache: pages read by another process would be charged to
that process, and serve this run for free. A run that never reached the limit does not count.
"""

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Claim, interleave, run_json
from benchmarks.loader_local import command, drop_page_cache
from benchmarks.memory_group import memory_group

SYSTEMS = ("fmscale", "limit", "memmap_batched", "litdata")
LIMIT = {False: 384 * 2**20, True: 200 * 2**20}
"""Limit for processes and page cache together. An interpreter with torch takes 160 MiB of it, which leaves 40 MiB for
67 MB of data in the quick run.
"""
WINDOW = {False: 512, True: 32}
"""Units of a shuffle window: 134 MB in full, 8 MB quick, for fmscale and for the roofline."""
REACHED = 0.95
"""Share of the limit that a counted run must reach."""
TARGET = ">= 0.8 of block reads, >= 2 x LitData"


def over_cache_claims(
    work: Path, corpus: Path, verified: dict[str, str | None], *, quick: bool, limit: int | None = None
) -> list[Claim]:
    """W1.over_cache."""
    limit = limit or LIMIT[quick]
    claim = Claim(
        id="W1.over_cache",
        what=f"shuffled feed of {corpus.stat().st_size / 1e6:,.0f} MB in {limit >> 20} MiB of memory and page cache",
        unit="tokens/s",
        ours=None,
        target=TARGET,
        reasons={name: str(verified[name]) for name in SYSTEMS if verified[name]},
    )
    try:
        with memory_group(limit):
            pass
    except RuntimeError as error:
        claim.reasons = dict.fromkeys(SYSTEMS, f"not measured: {error}")
        return [claim]
    window = WINDOW[quick]
    budget = window * 5 // 4 * 2**18  # a quarter more than the window, for read-ahead
    options = {
        "fmscale": ["--window", str(window), "--memory-bytes", str(budget)],
        "limit": ["--window", str(window)],
    }
    seconds = "1" if quick else "3"

    def feed(system: str) -> dict[str, Any]:
        drop_page_cache(work)
        line = command(system, "feed", corpus, str(work / system), "--seconds", seconds, "--warmup", seconds)
        with memory_group(limit) as group:
            result = run_json(group.inside([*line, *options.get(system, [])]), timeout=300)
            peak = group.peak_bytes()
        if peak < REACHED * limit:
            raise RuntimeError(f"the limit of {limit >> 20} MiB was not reached: {peak >> 20} MiB were used")
        return {**result, "peak_bytes": peak}

    systems = [name for name in SYSTEMS if not verified[name]]
    found = interleave({name: partial(feed, name) for name in systems}, 1 if quick else 3)
    claim.reasons |= {name: outcome.reason for name, outcome in found.items() if outcome.reason}
    claim.runs = [
        {"system": name, "value": _speed(run), "peak_bytes": run["peak_bytes"]}
        for name, outcome in found.items()
        for run in outcome.runs
    ]
    medians = {name: found[name].median(_speed) if name in found else None for name in SYSTEMS}
    claim.ours, claim.limit = medians.pop("fmscale"), medians.pop("limit")
    claim.peers = medians
    judge(claim)
    return [claim]


def judge(claim: Claim) -> None:
    """Set ratio and verdict. A peer without a figure does not count as slower."""
    litdata = claim.peers.get("litdata")
    if claim.ours is not None and claim.limit is not None:
        claim.ratio = claim.ours / claim.limit
        claim.ok = claim.ratio >= 0.8 and litdata is not None and claim.ours >= 2 * litdata


def _speed(run: dict[str, Any]) -> float:
    return float(run["tokens"] / run["seconds"])
