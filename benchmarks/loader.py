"""`fmscale bench loader`: shuffled batches [8, 4097] of int64, by fmscale and by common loaders.

All systems get the same tokens: each first proves, by an order-free hash over all rows, that it delivers the corpus
once. Measurements then cover speed, order at any number of ranks, shuffling, memory and faults. A part is a file and
measures its claims together; `only` chooses parts by the ids of their claims.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Claim, run_json, write_results
from benchmarks.loader_elastic import elastic_claims
from benchmarks.loader_faults import fault_claims
from benchmarks.loader_flat import flat_claims
from benchmarks.loader_local import SYSTEMS, command, local_claims
from benchmarks.loader_memory import memory_claims
from benchmarks.loader_over_cache import over_cache_claims
from benchmarks.loader_s3 import s3_claims
from benchmarks.loader_shuffle import shuffle_claims
from benchmarks.loader_state import plan_claims, resume_claims
from benchmarks.peers.common import ROW_TOKENS, cpu_seconds
from fmscale.errors import ConfigError
from tests.helpers.s3_server import S3Server

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
ROWS = {False: 131072, True: 8192}
"""Rows of the corpus: 1.07 GB in full, two shuffle windows, more than fmscale's memory; 67 MB quick."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Setting that the parts share."""

    work: Path
    """Scratch folder; each part uses its own names."""
    corpus: Path
    """Tokens, uint16; see `make_corpus`."""
    verified: dict[str, str | None]
    """None for each prepared system, or the reason of its exclusion. Its data lies in `work`/SYSTEM."""
    server: S3Server | None
    """A running S3 server, for parts that need it."""
    quick: bool
    """The same on less data."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Claims that are measured together."""

    ids: tuple[str, ...]
    """Ids of its claims, in order."""
    measure: Callable[[Bench], list[Claim]]
    """Measurement of the claims."""
    systems: tuple[str, ...] = ()
    """Systems that are prepared for it."""
    corpus: bool = False
    """True if it needs the corpus without a prepared system."""
    server: bool = False
    """True if it needs the S3 server."""


PARTS = (
    Part(
        ids=("W1.local_warm", "W1.local_cold", "W1.cpu", "W3.first_batch"),
        measure=lambda b: local_claims(b.work, b.corpus, b.verified, quick=b.quick),
        systems=SYSTEMS,
    ),
    Part(
        ids=("W1.over_cache",),
        measure=lambda b: over_cache_claims(b.work, b.corpus, b.verified, quick=b.quick),
        systems=("fmscale", "limit", "memmap_batched", "litdata"),
    ),
    Part(
        ids=("W2.s3", "W2.cpu", "W2.stall"),
        measure=lambda b: s3_claims(b.work, b.corpus, _server(b), quick=b.quick),
        corpus=True,
        server=True,
    ),
    Part(ids=("W3.plan", "W10.index"), measure=lambda b: plan_claims(repeats=1 if b.quick else 3)),
    Part(
        ids=("W4.resume",),
        measure=lambda b: resume_claims(b.work, b.corpus, quick=b.quick),
        systems=("fmscale",),
    ),
    Part(
        ids=("W5.elastic",),
        measure=lambda b: elastic_claims(b.work, _server(b), steps=4 if b.quick else 16),
        server=True,
    ),
    Part(ids=("W6.shuffle",), measure=lambda b: shuffle_claims(b.work, units=256 if b.quick else 8192)),
    Part(
        ids=("W9.memory",),
        measure=lambda b: memory_claims(str(b.work / "fmscale"), quick=b.quick, ranks=(1, 2) if b.quick else (1, 2, 4)),
        systems=("fmscale",),
    ),
    Part(
        ids=("W12.faults",),
        measure=lambda b: fault_claims(b.work, _server(b), quick=b.quick),
        server=True,
    ),
    Part(
        ids=("W13.padding", "W13.level", "W13.bytes", "W13.memory"),
        measure=lambda b: flat_claims(b.work, quick=b.quick),
    ),
)


def run(*, quick: bool = False, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure all claims, or the parts with a claim that a word of `only` names.

    Writes benchmarks/results/loader.json, or loader.part.json, which git ignores, for a choice of parts.
    Returns the claims as in that file. Raises ConfigError for a word without a claim.
    """
    parts = choose(only)
    wanted = {system for part in parts for system in part.systems}
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        work = Path(folder)
        corpus = work / "corpus.u16"
        if any(part.corpus or part.systems for part in parts):
            make_corpus(corpus, ROWS[quick])
        with ExitStack() as stack:
            server = None
            if any(part.server for part in parts):
                (work / "s3").mkdir()
                server = stack.enter_context(S3Server(work / "s3"))
                os.environ.update(server.environment)
            verified = prepare(work, corpus, [system for system in SYSTEMS if system in wanted])
            bench = Bench(work=work, corpus=corpus, verified=verified, server=server, quick=quick)
            for part in parts:
                claims += measured(part, bench)
    write_results("loader", claims, quick=quick, packages=PACKAGES, part=bool(only))
    return [vars(claim) for claim in claims]


def choose(only: Sequence[str]) -> list[Part]:
    """The parts with a claim that a word names (W1: all of W1, not W12; W1.local: all with this prefix)."""

    def named(id: str, words: Sequence[str]) -> bool:
        return any(id.startswith(word if "." in word else f"{word}.") for word in words)

    for word in only:
        if not any(named(id, [word]) for part in PARTS for id in part.ids):
            raise ConfigError(
                "no claim of this benchmark has that name",
                found=word,
                remedy=f"One of: {', '.join(id for part in PARTS for id in part.ids)}.",
            )
    return [part for part in PARTS if not only or any(named(id, only) for id in part.ids)]


def measured(part: Part, bench: Bench) -> list[Claim]:
    """The part's claims. A failure leaves its claims without a value, with this reason; the other parts go on."""
    started, cpu = time.monotonic(), cpu_seconds()
    try:
        claims = part.measure(bench)
    except RuntimeError as error:
        claims = [
            Claim(id=id, what="not measured", unit="", ours=None, reasons={"fmscale": str(error)}) for id in part.ids
        ]
    took = f"{time.monotonic() - started:.0f} s, {cpu_seconds() - cpu:.0f} CPU s"
    print(f"measured {', '.join(part.ids)} in {took}", flush=True)
    return claims


def make_corpus(path: Path, rows: int) -> None:
    """Tokens of a Zipf-like distribution, uint16."""
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        for _ in range(0, rows, 8192):
            ranks = rng.random(8192 * ROW_TOKENS, dtype=np.float32)
            (50000.0**ranks).astype(np.uint16).tofile(file)


def prepare(work: Path, corpus: Path, systems: Sequence[str]) -> dict[str, str | None]:
    """Prepare and check these systems, two at a time: None if a system delivered the corpus, else the reason of its
    exclusion.
    """

    def check(system: str) -> tuple[str | None, str | None]:
        """(hash, reason), one of them None."""
        try:
            found = run_json(command(system, "check", corpus, str(work / system)), timeout=900)
            return f"{found['rows']}:{found['hash']}", None
        except RuntimeError as error:
            return None, str(error)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(systems, pool.map(check, systems), strict=True))
    right = found.get("memmap_batched", (None, None))[0]
    reasons: dict[str, str | None] = {}
    for system, (got, reason) in found.items():
        wrong = reason is None and right is not None and got != right
        reasons[system] = f"delivered other rows: {got}, stored are {right}" if wrong else reason
        print(f"prepared {system}: {reasons[system] or 'rows checked'}", flush=True)
    return reasons


def _server(bench: Bench) -> S3Server:
    assert bench.server is not None, "the part says that it needs the server"
    return bench.server
