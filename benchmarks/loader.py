"""`fmscale bench loader`: shuffled batches [8, 4097] of int64, ours against what people use.

Same tokens for everybody: each system first proves, by an order-free hash over all rows, that it delivers
the corpus once. Then speed, every system in its own process, one after the other, several rounds. The limit
is `benchmarks/peers/limit.py`: verified block reads with a shuffle window and nothing around them.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Claim, Outcome, interleave, peer_python, run_json, write_results
from benchmarks.loader_s3 import s3_claims
from benchmarks.loader_state import plan_claims, resume_claims
from benchmarks.peers.common import ROW_TOKENS

PEERS = ("memmap_batched", "memmap_dataloader", "megatron", "litdata", "hf_datasets", "mosaic")
SYSTEMS = ("fmscale", "limit", *PEERS)
PACKAGES = [
    "torch",
    "numpy",
    "pyarrow",
    "obstore",
    "litdata",
    "mosaicml-streaming",
    "megatron-core",
    "datasets",
]
ROWS = {False: 131072, True: 16384}
"""Rows of the corpus: 1.07 GB in full, two shuffle windows, more than our memory budget; 134 MB quick."""
MEMORY_BUDGET = {False: 768 * 2**20, True: 96 * 2**20}
"""Host memory for our units: three quarters of the corpus, so that units are read and checked again every
epoch instead of being served from memory.
"""
WINDOW = {False: 2048, True: 256}
"""Units of a shuffle window, ours and the roofline's: half of the corpus, so that two windows are passed through and
one fits into memory. A budget below one window would read most units several times.
"""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all claims; writes benchmarks/results/loader.json. Returns the claims as in that file."""
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        work = Path(folder)
        corpus = work / "corpus.u16"
        make_corpus(corpus, ROWS[quick])
        verified = prepare(work, corpus)
        rounds, seconds = (1, 1.0) if quick else (5, 4.0)
        claims = local_claims(work, corpus, verified, rounds=rounds, seconds=seconds, quick=quick)
        claims += s3_claims(work, corpus, verified, rounds=1 if quick else 3, quick=quick)
        claims += plan_claims(repeats=1 if quick else 3)
        claims += resume_claims(work, corpus, quick=quick)
    write_results("loader", claims, quick=quick, packages=PACKAGES)
    return [vars(claim) for claim in claims]


def make_corpus(path: Path, rows: int) -> None:
    """Tokens of a Zipf-like distribution, uint16."""
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        for _ in range(0, rows, 8192):
            ranks = rng.random(8192 * ROW_TOKENS, dtype=np.float32)
            (50000.0**ranks).astype(np.uint16).tofile(file)


def command(system: str, action: str, corpus: Path, data: str, *options: str) -> list[str]:
    """Command line of one run of one system."""
    program = [peer_python(), "-m", "benchmarks.peers.run", system, action]
    return [*program, "--corpus", str(corpus), "--data", data, *options]


def prepare(work: Path, corpus: Path) -> dict[str, str | None]:
    """Prepare and check every system: None where it delivered the corpus, else why it is left out."""
    reasons: dict[str, str | None] = {}
    hashes: dict[str, str] = {}
    for system in SYSTEMS:
        try:
            data = str(work / system)
            found = run_json(command(system, "check", corpus, data), timeout=900)
            hashes[system] = f"{found['rows']}:{found['hash']}"
            right = hashes.get("memmap_batched", hashes[system])
            reasons[system] = None if hashes[system] == right else f"delivered other rows: {hashes[system]}"
        except RuntimeError as error:
            reasons[system] = str(error)
        print(f"prepare {system}: {reasons[system] or 'rows checked'}", flush=True)
    if hashes.get("memmap_batched") != hashes.get("fmscale"):
        reasons["fmscale"] = f"delivered other rows: {hashes}"
    return reasons


def local_claims(
    work: Path,
    corpus: Path,
    verified: dict[str, str | None],
    *,
    rounds: int,
    seconds: float,
    quick: bool,
) -> list[Claim]:
    """W1: local feed, warm and cold, with CPU time; W3: first batch."""
    window = ["--window", str(WINDOW[quick])]
    ours = {"fmscale": [*window, "--memory-budget", str(MEMORY_BUDGET[quick])], "limit": window}

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
        {
            name: partial(feed, name, "--seconds", str(seconds), "--warmup", "0", cold=True)
            for name in systems
        },
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
        runs=[
            {"system": name, "value": value(result)}
            for name, outcome in found.items()
            for result in outcome.runs
        ],
    )


def drop_page_cache(folder: Path) -> None:
    """Make the next reads of everything below `folder` come from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
