"""W2: the same feed from a real S3 server on loopback, behind a proxy that adds a cloud's latency."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import Claim, Outcome, interleave, peer_python, run_json
from benchmarks.peers.common import corpus_rows
from benchmarks.peers.ours import write_dataset
from fmscale.store.open import open_store
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.s3_server import S3Server

P50, P99 = 0.025, 0.150
"""Seconds to the first byte, as in S3 from the same region."""
ROWS = {False: 32768, True: 4096}
"""Rows of the S3 corpus: 268 MB in full, 34 MB quick; the server shares the two cores."""
PEERS = ("litdata_s3", "mosaic_s3")
STEP, STALL_LATENCY = 0.1, 0.05


def s3_claims(work: Path, corpus: Path, server: S3Server, *, quick: bool) -> list[Claim]:
    """W2.s3 (throughput), W2.cpu (its CPU time) and W2.stall (a 100 ms step behind 50 ms of latency)."""
    small = work / "corpus-s3.u16"
    np.asarray(corpus_rows(corpus)[: ROWS[quick]]).tofile(small)
    bucket = server.new_bucket()
    _fill(work, small, server, bucket)
    with FaultProxy(server.host, server.port) as proxy:
        proxy.set_latency(p50=P50, p99=P99)
        throughput, cpu = _throughput(work, small, server, bucket, proxy.endpoint, 1 if quick else 3)
        proxy.set_latency(p50=STALL_LATENCY, p99=STALL_LATENCY)
        stall = _stall(small, server.url(bucket, "ours", endpoint=proxy.endpoint), quick)
    return [throughput, cpu, stall]


def _fill(work: Path, small: Path, server: S3Server, bucket: str) -> None:
    """Put all systems' shards on the server, directly."""
    write_dataset(small, server.url(bucket, "ours"))
    raw = open_store(server.url(bucket, "raw"))
    raw.put_file("corpus.u16", small)

    def prepare(system: str) -> None:
        out = work / f"s3-{system}"
        command = [peer_python(), "-m", "benchmarks.peers.run", system, "prepare"]
        try:
            run_json([*command, "--corpus", str(small), "--data", str(out)], timeout=300)
        except RuntimeError as error:
            print(f"prepare {system} for S3: {error}", flush=True)
            return
        if system == "limit":
            raw.put("crc32c.bin", np.load(out / "crc32c.npy").tobytes())
            return
        target = open_store(server.url(bucket, system))
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            target.put_file(path.relative_to(out).as_posix(), path)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(prepare, ("limit", *(peer.removesuffix("_s3") for peer in PEERS))))


def _throughput(
    work: Path, small: Path, server: S3Server, bucket: str, endpoint: str, rounds: int
) -> tuple[Claim, Claim]:
    environment = {**server.environment, "S3_ENDPOINT_URL": endpoint}
    cache = work / "s3-cache"

    def feed(system: str, data: str) -> dict[str, Any]:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        command = [peer_python(), "-m", "benchmarks.peers.run", system, "feed", "--corpus", str(small)]
        options = ["--data", data, "--warmup", "0", "--seconds", "60", "--cache", str(cache)]
        return run_json([*command, *options], timeout=180, env=environment)

    places = {
        "fmscale": server.url(bucket, "ours", endpoint=endpoint),
        "limit_s3": server.url(bucket, "raw", endpoint=endpoint),
        "litdata_s3": f"s3://{bucket}/litdata",
        "mosaic_s3": f"s3://{bucket}/mosaic",
    }
    found = interleave({name: partial(feed, name, place) for name, place in places.items()}, rounds)
    medians = {name: outcome.median(_speed) for name, outcome in found.items()}
    claim = Claim(
        id="W2.s3",
        what=f"one epoch from S3, latency p50 {P50 * 1e3:.0f} ms, p99 {P99 * 1e3:.0f} ms, empty cache",
        unit="tokens/s",
        ours=medians["fmscale"],
        limit=medians["limit_s3"],
        peers={peer: medians[peer] for peer in PEERS},
        target=">= 1.5 x the best peer",
        reasons={name: outcome.reason for name, outcome in found.items() if outcome.reason},
        runs=_runs(found),
    )
    best = max((value for value in claim.peers.values() if value is not None), default=None)
    if claim.ours is not None and best is not None:
        claim.ratio = claim.ours / best
        claim.ok = claim.ratio >= 1.5
    return claim, _cpu(found)


def _cpu(found: dict[str, Outcome]) -> Claim:
    """CPU seconds a GB of the same epochs: the server's and the proxy's work on the same cores does not count."""
    medians = {name: outcome.median(_cpu_per_gb) for name, outcome in found.items()}
    claim = Claim(
        id="W2.cpu",
        what="CPU time of the feed from S3, all threads",
        unit="CPU s / GB",
        ours=medians["fmscale"],
        limit=medians["limit_s3"],
        peers={peer: medians[peer] for peer in PEERS},
        target="<= LitData's",
        runs=[{"system": name, "value": _cpu_per_gb(run)} for name, outcome in found.items() for run in outcome.runs],
    )
    litdata = claim.peers["litdata_s3"]
    if claim.ours is not None and litdata is not None:
        claim.ratio = litdata / claim.ours
        claim.ok = claim.ratio >= 1
    return claim


def _stall(small: Path, url: str, quick: bool) -> Claim:
    """Share of time that a 100 ms step waits for data, with and without prefetch."""
    command = [peer_python(), "-m", "benchmarks.peers.stall", url, str(STEP), "10" if quick else "60"]
    runs = []
    for prefetch in ("prefetch", "none") * (1 if quick else 2):
        result = run_json([*command, prefetch], timeout=300)
        runs.append({"system": prefetch, "value": result["stall_fraction"]})
    ours = median(run["value"] for run in runs if run["system"] == "prefetch")
    without = median(run["value"] for run in runs if run["system"] == "none")
    return Claim(
        id="W2.stall",
        what="data stall of a 100 ms step, 50 ms latency (peer column: without prefetch)",
        unit="fraction",
        ours=ours,
        peers={"without prefetch": without},
        target="< 0.02, and > 0.30 without prefetch",
        ok=ours < 0.02 and without > 0.30,
        runs=runs,
    )


def _speed(run: dict[str, Any]) -> float:
    return float(run["tokens"] / run["seconds"])


def _cpu_per_gb(run: dict[str, Any]) -> float:
    return float(run["cpu_seconds"] / (2 * run["tokens"]) * 1e9)


def _runs(found: dict[str, Outcome]) -> list[dict[str, Any]]:
    return [{"system": name, "value": _speed(run)} for name, outcome in found.items() for run in outcome.runs]
