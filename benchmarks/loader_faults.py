"""W12.faults: damage and outages must cause no wrong row, crash or hang of the loader.

Damage (a flipped bit, a truncated shard, a missing one; in the store or in a rank's cache) is done to stored files and
objects; outages come from a proxy in front of a real S3 server. Every delivered row is compared with the corpus. Rows
without an intact copy must be replaced, with an entry in the order log; if a good copy exists or returns, the order
must equal that of a run without faults. A cell whose fault did not occur counts as a failure.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.harness import ROOT, Claim, peer_python
from benchmarks.peers.common import ROW_TOKENS
from benchmarks.peers.ours import write_dataset
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.s3_server import S3Server

ROWS = 2048
"""Rows of the corpus: 17 MB in 64 units and 8 segments."""
SEGMENT_TOKENS = 2**20
OUTAGE = {False: 30.0, True: 6.0}
"""Seconds of 503."""
STALL = {False: 20.0, True: 12.0}
"""Seconds without an answer; the loader cuts a request after 10."""
PATIENCE = 60.0
"""Seconds beyond the fault after which a run hangs."""
AT_ONCE = 3
"""Parallel cells: they wait most of the time."""

Damage = Callable[[Backend, str], None]


def flip(store: Backend, key: str) -> None:
    """Flip one bit in the middle of a stored object."""
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def truncate(store: Backend, key: str) -> None:
    """Keep the first half of a stored object."""
    data = store.get(key)
    store.put(key, data[: len(data) // 2])


def remove(store: Backend, key: str) -> None:
    """Delete a stored object."""
    store.delete(key)


DAMAGES: dict[str, Damage] = {"flip": flip, "truncate": truncate, "missing": remove}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One cell."""

    name: str
    """Place and kind of the fault."""
    url: str
    """The store that the loader reads."""
    lasting: bool = False
    """True without an intact copy: rows must be replaced, with an entry in the order log."""
    at_pause: Callable[[], None] = lambda: None
    """Causes the fault, after half of the samples."""
    happened: Callable[[dict[str, Any]], bool] = lambda result: True
    """Decides from the result if the fault occurred."""
    cache: str = "-"
    """Folder of the rank's cache, or -."""
    seconds: float = 0.0
    """Duration in seconds."""


def fault_claims(
    work: Path, server: S3Server, *, quick: bool, outage: float | None = None, stall: float | None = None
) -> list[Claim]:
    """W12.faults."""
    folder = work / "faults"
    folder.mkdir()
    corpus, digests = folder / "corpus.u16", folder / "digests.npy"
    tokens = np.random.default_rng(3).integers(0, 50000, (ROWS, ROW_TOKENS), dtype=np.uint16)
    tokens.tofile(corpus)
    np.save(digests, np.array([xxhash.xxh3_64_intdigest(row) for row in tokens], dtype=np.uint64))
    write_dataset(corpus, str(folder / "clean"), segment_tokens=SEGMENT_TOKENS)
    expected = deliver(Fault(name="none", url=str(folder / "clean")), digests)
    if expected.get("silent") != 0:
        raise RuntimeError(f"the run without faults did not deliver the corpus: {expected}")
    with ExitStack() as stack:
        times = (outage or OUTAGE[quick], stall or STALL[quick])
        faults = [*remote_faults(folder, server, stack, *times), *local_faults(folder)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = list(pool.map(lambda fault: deliver(fault, digests), faults))
        runs = [judged(fault, result, expected) for fault, result in zip(faults, done, strict=True)]
    for run in runs:
        print(f"  {run['system']}: {'as it should be' if not run['value'] else run}", flush=True)
    return [claim(runs)]


def claim(runs: list[dict[str, Any]]) -> Claim:
    """The row of these cells."""
    count = {name: sum(run[name] for run in runs) for name in ("silent", "crash", "hang", "not_as_promised")}
    return Claim(
        id="W12.faults",
        what=f"of {len(runs)} faults, those with silent wrong rows, a crash, a hang, or another order (peer column)",
        unit="cells",
        ours=float(sum(run["value"] for run in runs)),
        peers={name: float(number) for name, number in count.items()},
        target="0 silent, 0 crash, 0 hang",
        ok=not any(run["value"] for run in runs),
        runs=runs,
    )


def local_faults(folder: Path) -> list[Fault]:
    """Damage in a directory store, and in a cache in front of it."""
    faults = []
    for name, damage in DAMAGES.items():
        copy = folder / f"local-{name}"
        shutil.copytree(folder / "clean", copy)
        _damage(open_store(str(copy)), damage)
        faults.append(Fault(name=f"local: {name}", url=str(copy), lasting=True))
    cache = folder / "cache"

    def flip_cached() -> None:
        for path in cache.rglob("*"):
            if path.is_file() and path.stat().st_size > 2**20:
                _flip_every_chunk(path)

    copy = folder / "local-cached"
    shutil.copytree(folder / "clean", copy)
    faults.append(
        Fault(
            name="cache: flip",
            url=str(copy),
            cache=str(cache),
            at_pause=flip_cached,
            happened=lambda result: result["store_bytes_after_pause"] > 0,
        )
    )
    return faults


def remote_faults(folder: Path, server: S3Server, stack: ExitStack, outage: float, stall: float) -> list[Fault]:
    """Damage on an S3 server, and outages on the way to it."""
    bucket = server.new_bucket()
    faults = []

    def stored(name: str) -> None:
        write_dataset(folder / "corpus.u16", server.url(bucket, name), segment_tokens=SEGMENT_TOKENS)

    for name, damage in DAMAGES.items():
        stored(name)
        _damage(open_store(server.url(bucket, name)), damage)
        faults.append(Fault(name=f"S3: {name}", url=server.url(bucket, name), lasting=True))
    outages = {
        f"503 for {outage:.0f} s": ("503", outage, {"seconds": outage}),
        f"stall {stall:.0f} s": ("stall", stall, {"count": 3, "stall": stall, "method": "GET"}),
        "reset": ("reset", 0.0, {"count": 8, "after_bytes": 1000, "method": "GET"}),
    }
    for number, (name, (kind, seconds, options)) in enumerate(outages.items()):
        stored(f"outage-{number}")
        proxy = stack.enter_context(FaultProxy(server.host, server.port))

        def inject(proxy: FaultProxy = proxy, kind: str = kind, options: dict[str, Any] = options) -> None:
            proxy.inject(kind, **options)

        def happened(result: dict[str, Any], proxy: FaultProxy = proxy, kind: str = kind) -> bool:
            return proxy.counters().get(kind, 0) > 0

        url = server.url(bucket, f"outage-{number}", endpoint=proxy.endpoint)
        faults.append(Fault(name=f"S3: {name}", url=url, at_pause=inject, happened=happened, seconds=seconds))
    return faults[::-1]  # outages first, as they take longest


def deliver(fault: Fault, digests: Path) -> dict[str, Any]:
    """Output of the process that delivers through the fault, or {"crash": reason}, or {"hang": seconds}."""
    command = [peer_python(), "-m", "benchmarks.peers.faulted", fault.url]
    # A cache is filled by one epoch and read by the next; otherwise the fault comes halfway.
    first, total = (ROWS, 2 * ROWS) if fault.cache != "-" else (ROWS // 2, ROWS)
    patience = fault.seconds + PATIENCE
    with subprocess.Popen(
        [*command, str(first), str(total), str(digests), fault.cache],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        hung = threading.Event()
        clock = threading.Timer(patience, lambda: (hung.set(), process.kill()))
        clock.start()
        try:
            lines = [process.stdout.readline()]
            if lines[0]:
                fault.at_pause()
                clock.cancel()
                clock = threading.Timer(patience, lambda: (hung.set(), process.kill()))
                clock.start()
            output, errors = process.communicate("\n")
        finally:
            clock.cancel()
            process.kill()
    if hung.is_set():
        return {"hang": patience}
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        return {"crash": f"exit {process.returncode}: {errors.strip()[-400:]}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def judged(fault: Fault, result: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """The cell: 1 in `value` for any deviation, with its reason."""
    ended = "crash" not in result and "hang" not in result
    promised = ended and fault.happened(result)
    if fault.lasting:
        promised = promised and result["replaced_rows"] > 0
    elif ended and fault.cache == "-":
        promised = promised and not result["replaced_rows"] and result["order"] == expected["order"]
    elif ended:
        promised = promised and not result["replaced_rows"]
    cell = {
        "system": fault.name,
        **result,
        "silent": int(result.get("silent", 0) > 0),
        "wrong_rows": result.get("silent", 0),
        "crash": int("crash" in result),
        "hang": int("hang" in result),
        "not_as_promised": int(ended and not promised),
        "reason": str(result.get("crash", "")),
    }
    cell["value"] = float(any(cell[name] for name in ("silent", "crash", "hang", "not_as_promised")))
    return cell


def _damage(store: Backend, damage: Damage) -> None:
    """Damage one shard of tokens in the middle of the dataset."""
    shards = [info.key for info in store.list_objects("datasets/corpus/segments") if "/tokens/c/" in info.key]
    damage(store, shards[len(shards) // 2])


def _flip_every_chunk(path: Path) -> None:
    """Flip a bit in every 64 KiB of a cache file, in place, behind its states, which fill a page."""
    with path.open("r+b") as file:
        for at in range(2 * 4096, path.stat().st_size, 2**16):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
