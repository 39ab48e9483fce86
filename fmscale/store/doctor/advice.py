"""Advice on a store, from the doctor's measurements. Each rule is one sentence with its figure."""

import shutil
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qs, urlsplit

from fmscale.store.backends.protocol import Backend
from fmscale.store.doctor.measure import Measurement
from fmscale.store.doctor.probe import Capabilities, file_system_type

NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "cifs", "smb", "9p", "virtiofs")
VOLATILE_FILE_SYSTEMS = ("tmpfs", "ramfs", "overlay")
LITTLE_ROOM = 10 << 30
"""Bytes: a checkpoint of a billion parameters with its optimizer (16 bytes each) needs more."""


def advise(
    backend: Backend, capabilities: Capabilities | None, measurements: Sequence[Measurement], repeated: int, denied: str
) -> Iterator[str]:
    """Sentences for the user, most serious first."""
    yield from _on_safety(capabilities, denied)
    yield from _on_place(backend)
    yield from _on_speed(measurements)
    if repeated:
        yield (
            f"{repeated} requests had to be repeated: the store is busy or the network drops connections; "
            "results come, but later."
        )


def _on_safety(capabilities: Capabilities | None, denied: str) -> Iterator[str]:
    if denied:
        yield f"Only reading was examined, as writing was denied: {denied}"
    if capabilities is None:
        return
    if not capabilities.writable:
        yield (
            f"Do not write here: {capabilities.problem}. Use an object store with conditional creation "
            "(If-None-Match) or a POSIX file system with hard links."
        )
    if not capabilities.list_after_write:
        yield "Listings lag behind writes: `dataset list` may miss a new dataset for a while."


def _on_place(backend: Backend) -> Iterator[str]:
    parts = urlsplit(backend.url)
    root = backend.local_path("fmscale.json")
    if root is not None:
        kind, free = file_system_type(root.parent), shutil.disk_usage(root.parent).free
        if kind.startswith(NETWORK_FILE_SYSTEMS):
            yield (
                f"The race ran on this node only, and {kind} is shared: run `fmscale doctor --again` on two "
                "nodes at the same time once."
            )
        if kind in VOLATILE_FILE_SYSTEMS:
            yield f"{kind} does not outlive a reboot or its container: keep nothing here that you need."
        if free < LITTLE_ROOM:
            yield f"Only {free / 1e9:.1f} GB are free."
    if parts.scheme == "memory":
        yield "A memory store ends with its process."
    endpoint = parse_qs(parts.query).get("endpoint", [""])[0]
    if endpoint.startswith("http://") and urlsplit(endpoint).hostname not in ("127.0.0.1", "localhost", "::1"):
        yield "Data travels unencrypted: use an https:// endpoint unless the network is private."


def _on_speed(measurements: Sequence[Measurement]) -> Iterator[str]:
    gets = [get for get in measurements if get.operation == "get" and get.megabytes_per_second]
    if gets:
        best = max(gets, key=lambda get: get.megabytes_per_second or 0.0)
        single = max((get for get in gets if get.streams == 1), key=lambda get: get.bytes)
        rate, alone = best.megabytes_per_second or 0.0, single.megabytes_per_second or 0.0
        # uint16 tokens: two bytes each.
        yield f"Reads reach {rate:,.0f} MB/s, enough for {rate / 2:,.0f} million tokens a second (uint16)."
        if alone and rate > 1.5 * alone:
            yield (
                f"{best.streams} streams read {rate / alone:.1f} times as fast as one: keep at least "
                f"{best.streams} reads under way."
            )
    for kind in measurements:
        if kind.operation == "range" and kind.streams == 1 and kind.p99_ms > 10 * kind.p50_ms and kind.p99_ms > 50:
            yield (
                f"One range in a hundred takes {kind.p99_ms:.0f} ms where the median is {kind.p50_ms:.0f} ms: "
                "give the loader more memory (data.memory_bytes), or a node cache."
            )
        if kind.operation == "put_if_absent" and kind.p50_ms > 500:
            yield f"A commit takes {kind.p50_ms:.0f} ms here: commit in larger portions."
