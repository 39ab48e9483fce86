"""W1 and W3.first_batch: the local feed, warm and cold, with its CPU time, by fmscale and by common loaders.

Every system runs in its own process, one after the other, several rounds. The limit is
`benchmarks/peers/limit.py`: verified block reads with only a shuffle window.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Claim, Outcome, interleave, peer_python, run_json

PEERS = ("memmap_batched", "memmap_dataloader", "megatron", "litdata", "hf_datasets", "mosaic")
SYSTEMS = ("fmscale", "limit", *PEERS)
MEMORY_BYTES = {False: 768 * 2**20, True: 48 * 2**20}
"""Host memory for fmscale's units: three quarters of the corpus, so that every epoch reads and checks units again
instead of serving them from memory.
"""
WINDOW = {False: 2048, True: 128}
"""Units of a shuffle window, for fmscale and the roofline: half of the corpus, so that an epoch has two windows and
memory holds one. Memory below a window would read most units several times.
"""


def command(system: str, action: str, corpus: Path, data: str, *options: str) -> list[str]:
    """Command line of one run of one system."""
    program = [peer_python(), "-m", "benchmarks.peers.run", system, action]
    return [*program, "--corpus", str(corpus), "--data", data, *options]


def local_claims(
    work: Path,
    corpus: Path,
    verified: dict[str, str | None],
    *,
    quick: bool,
) -> list[Claim]:
    """W1: local feed, warm and cold, with CPU time; W3: first batch."""
    rounds, seconds = (1, 1.0) if quick else (3, 2.5)
    window = ["--window", str(WINDOW[quick])]
    ours = {"fmscale": [*window, "--memory-bytes", str(MEMORY_BYTES[quick])], "limit": window}

    def feed(system: str, *options: str, cold: bool) -> dict[str, Any]:
        if cold:
            drop_page_cache(work)
        line = command(system, "feed", corpus, str(work / system), *options, *ours.get(system, []))
        return run_json(line, timeout=300)

    systems = [system for system in SYSTEMS if verified[system] is None]
    warm = interleave(
        {
            name: partial(feed, name, "--seconds", str(seconds), "--warmup", str(seconds), cold=False)
            for name in systems
        },
        rounds,
    )
    cold = interleave(
        {name: partial(feed, name, "--seconds", str(seconds), "--warmup", "0", cold=True) for name in systems},
        rounds,
    )
    return [
        speed_claim("W1.local_warm", "shuffled, verified feed, page cache warm", warm, verified),
        speed_claim("W1.local_cold", "the same, page cache cold, from the first read on", cold, verified),
        cpu_claim(warm, verified),
        first_batch_claim(warm, verified),
    ]


def speed_claim(id: str, what: str, found: dict[str, Outcome], verified: dict[str, str | None]) -> Claim:
    """Tokens per second; the target depends on the claim."""
    claim = collect(id, what, "tokens/s", found, verified, lambda r: r["tokens"] / r["seconds"])
    if claim.ours is None or claim.limit is None:
        return claim
    claim.ratio = claim.ours / claim.limit
    if id == "W1.local_cold":
        claim.target, claim.ok = ">= 0.8 of limit", claim.ratio >= 0.8
        return claim
    claim.target = ">= 0.6 of limit, 1 x batched memmap, 2 x Megatron, 4 x LitData"
    factors = {"memmap_batched": 1.0, "megatron": 2.0, "litdata": 4.0}
    claim.ok = claim.ratio >= 0.6 and all(
        claim.ours >= factor * (claim.peers.get(peer) or 0.0) for peer, factor in factors.items()
    )
    return claim


def cpu_claim(found: dict[str, Outcome], verified: dict[str, str | None]) -> Claim:
    """CPU seconds for 10^9 tokens."""
    claim = collect(
        "W1.cpu",
        "CPU time of the warm feed, all threads",
        "CPU s / 1e9 tokens",
        found,
        verified,
        lambda r: r["cpu_seconds"] / r["tokens"] * 1e9,
    )
    if claim.ours is not None:
        others = [value for value in claim.peers.values() if value is not None]
        claim.ratio = claim.ours / min(others) if others else None
        claim.target = "<= 2.0 and the lowest of all"
        claim.ok = claim.ours <= 2.0 and all(claim.ours <= value for value in others)
    return claim


def first_batch_claim(found: dict[str, Outcome], verified: dict[str, str | None]) -> Claim:
    """Seconds from after `import torch` to the first batch."""
    claim = collect(
        "W3.first_batch",
        "process start to first batch, after `import torch`",
        "s",
        found,
        verified,
        lambda r: r["first_batch_seconds"],
    )
    if claim.ours is not None:
        claim.target, claim.ok = "<= 0.3", claim.ours <= 0.3
    return claim


def collect(
    id: str,
    what: str,
    unit: str,
    found: dict[str, Outcome],
    verified: dict[str, str | None],
    value: Callable[[dict[str, Any]], float],
) -> Claim:
    """A claim with the medians and all runs."""
    reasons = {
        name: reason
        for name in SYSTEMS
        if (reason := verified[name] or (found[name].reason if name in found else None))
    }
    medians = {name: found[name].median(value) if name in found else None for name in SYSTEMS}
    return Claim(
        id=id,
        what=what,
        unit=unit,
        ours=medians["fmscale"],
        limit=medians["limit"],
        peers={name: medians[name] for name in PEERS},
        reasons=reasons,
        runs=[{"system": name, "value": value(result)} for name, outcome in found.items() for result in outcome.runs],
    )


def drop_page_cache(folder: Path) -> None:
    """Drop the page cache of all files below `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
