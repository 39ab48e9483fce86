"""Test of the promises behind commits: made once, its result written into the store.

A store in which two of 16 racing writers create the same key would lose commits silently, so fmscale refuses to
write to it. The race is repeated for another implementation (say the same bucket behind a new gateway), not
for every process: the result lies in `fmscale.json` at the store's root.
"""

import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil

from fmscale.errors import CorruptData, FormatError, ObjectNotFound, StoreError
from fmscale.store.backends.fsspec import FsspecBackend
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import created

RECORD_KEY = "fmscale.json"
FORMAT_VERSION = 1
WRITERS = 16
KEYS = 20
FOREIGN_KEYS = 120
"""Keys raced one after another on a store behind fsspec: one race on its local files shows the fault in one
case of seven, and 120 races miss it once in 10^8. They take a few seconds, once for each store."""

_known: dict[tuple[str, str], "Capabilities"] = {}
_known_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Abilities that one implementation of a store showed."""

    implementation: str
    """File system type, S3 endpoint or protocol; the result holds for this implementation only."""
    put_if_absent: bool
    """Every raced key had exactly one winner, and holds the winner's bytes."""
    read_after_write: bool
    """After a put every reader gets the whole object; after a delete no reader finds it."""
    range_read: bool
    """Part of an object can be read, and a range past the object's end is an error."""
    list_after_write: bool
    """A new object is in the next listing."""
    problem: str
    """The observed failure; empty if all is well."""
    writers: int
    keys: int
    time: float
    """Time of the probe, seconds since the epoch."""

    @property
    def writable(self) -> bool:
        """True if commits are safe here; commits need no listing."""
        return self.put_if_absent and self.read_after_write and self.range_read


def implementation(backend: Backend) -> str:
    """Name of the software behind the backend's URL, as far as a probe's result depends on it."""
    parts = urlsplit(backend.url)
    if parts.scheme == "file":
        path = backend.local_path(RECORD_KEY)
        assert path is not None, "a file store has local paths"
        return f"file:{file_system_type(path.parent)}"
    endpoint = parse_qs(parts.query).get("endpoint", ["default"])[0]
    return f"{parts.scheme}:{endpoint}" if parts.scheme == "s3" else parts.scheme or "path"


def file_system_type(path: Path) -> str:
    """Type of the file system that holds `path`, such as `ext4`; `posix` where /proc does not say."""
    resolved = path.resolve()
    kind, longest = "posix", 0
    with suppress(OSError):
        for mount in psutil.disk_partitions(all=True):
            if resolved.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= longest:
                kind, longest = mount.fstype, len(mount.mountpoint)
    return kind


def _place(backend: Backend) -> str:
    """Device or bucket of the store: all stores there share one result in this process."""
    path = backend.local_path(RECORD_KEY)
    return str(path.parent.stat().st_dev) if path is not None else urlsplit(backend.url).netloc


def probe(backend: Backend, *, again: bool = False) -> Capabilities:
    """Abilities of the store, from an earlier record or from a race that is then recorded.

    `again` races even if a record exists. Raises AccessDenied if nothing can be written.
    """
    name = implementation(backend)
    recorded = None if again else recorded_capabilities(backend)
    if recorded is None:
        place = (name, _place(backend))
        with _known_lock:
            recorded = None if again else _known.get(place)
            if recorded is None:
                recorded = _examine(backend, name)
                _known[place] = recorded
        _record(backend, recorded)
    _open_for_writing(backend, recorded.writable)
    return recorded


def require_writable(backend: Backend) -> None:
    """Probe the store unless a result is recorded. Raises StoreError, with the failure, if commits are unsafe."""
    capabilities = probe(backend)
    if not capabilities.writable:
        raise StoreError(
            "this store cannot be written safely: two writers could both believe that they committed",
            found=f"{capabilities.problem} ({capabilities.implementation}, {backend.url})",
            remedy="Use a store with conditional creation (S3 with If-None-Match, SeaweedFS 4.48 or newer, "
            "GCS, Azure, ext4, XFS, NFS, Lustre); reading from this one is fine.",
        )


def recorded_capabilities(backend: Backend) -> Capabilities | None:
    """The result recorded in the store for its present implementation, or None.

    Raises FormatError for a record of a later format version.
    """
    record = _read_record(backend)["probes"].get(implementation(backend))
    if record is None:
        return None
    names = {field.name for field in fields(Capabilities)}
    return Capabilities(**{k: v for k, v in record.items() if k in names})


def _read_record(backend: Backend) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(backend.get(RECORD_KEY))
    except ObjectNotFound:
        return {"probes": {}}
    except (ValueError, RecursionError) as error:
        raise FormatError(
            "the store's own record is not JSON", found=f"{RECORD_KEY} in {backend.url}", remedy="Delete it."
        ) from error
    if record.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            "the store's record is of another format version",
            found=f"{record.get('format_version')} in {RECORD_KEY}, known: {FORMAT_VERSION}",
            remedy="Use the fmscale version that wrote it, or newer.",
        )
    return record


def _record(backend: Backend, result: Capabilities) -> None:
    # Probes of two implementations at the same moment may lose one record: its race then runs again.
    _open_for_writing(backend, True)
    record = {
        "format_version": FORMAT_VERSION,
        "probes": {**_read_record(backend)["probes"], result.implementation: asdict(result)},
    }
    backend.put(RECORD_KEY, json.dumps(record, indent=1, sort_keys=True).encode())


def _open_for_writing(backend: Backend, allowed: bool) -> None:
    if isinstance(backend, FsspecBackend):
        backend.accepts_writes = allowed


def _examine(backend: Backend, name: str) -> Capabilities:
    _open_for_writing(backend, True)
    folder = f"fmscale-probe/{uuid.uuid4().hex}"
    races = [[f"{folder}/race-{number:03d}" for number in range(KEYS)]]
    if isinstance(backend, FsspecBackend):
        races = [[f"{folder}/race-{number:03d}"] for number in range(FOREIGN_KEYS)]
    keys: list[str] = []
    race = ""
    while races and not race:
        keys += races[0]
        with _eager_threads():
            race = _race(backend, races.pop(0))
    visible = _read_after_write(backend, f"{folder}/visible")
    ranged = _range_read(backend, f"{folder}/range")
    new = {info.key for info in backend.list_objects(folder)}
    listed = "" if new >= set(keys) else "a new object is missing from the listing"
    for key in [*keys, f"{folder}/range", f"{folder}/visible"]:
        backend.delete(key)
    return Capabilities(
        implementation=name,
        put_if_absent=not race,
        read_after_write=not visible,
        range_read=not ranged,
        list_after_write=not listed,
        problem="; ".join(failure for failure in (race, visible, ranged, listed) if failure),
        writers=WRITERS,
        keys=len(keys),
        time=time.time(),
    )


@contextmanager
def _eager_threads() -> Iterator[None]:
    """Switch threads every 10 us instead of 5 ms, so that Python code is cut between its check and its write."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _race(backend: Backend, keys: list[str]) -> str:
    """Race all writers for all keys at once; returns the failure, or an empty string.

    Some servers answer losers in steps of a second, so races for one key after another would take minutes instead
    of seconds. Stores behind fsspec get one key at a time all the same: their `create` may check first and then
    write, and fewer threads run closer together (320 threads on a busy machine missed the fault 18 times in 30).
    """
    start = threading.Barrier(len(keys) * WRITERS)

    def write(writer: int, key: str) -> tuple[str, int, bool]:
        start.wait()
        return key, writer, created(backend, key, _content(writer, key))

    jobs = [(writer, key) for key in keys for writer in range(WRITERS)]
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            answers = list(pool.map(lambda job: write(*job), jobs))
    except StoreError as error:
        # A store without conditional creation is a result of the race; a dead network is an error.
        if type(error) is not StoreError:
            raise
        return f"put_if_absent failed: {error}"
    for key in keys:
        winners = [writer for name, writer, won in answers if name == key and won]
        if len(winners) != 1:
            return f"{len(winners)} of {WRITERS} racing writers were told that they created the same key"
        if backend.get(key) != _content(winners[0], key):
            return "the object does not hold the bytes of the writer that was told it created it"
    return ""


def _content(writer: int, key: str) -> bytes:
    return f"writer {writer} of {key}".encode() * 20


def _read_after_write(backend: Backend, key: str) -> str:
    for size in (1, 100_000, 10):
        data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
        backend.put(key, data)
        if backend.get(key) != data or backend.head(key).bytes != size:
            return "an object read just after it was written is not what was written"
    backend.delete(key)
    return "a deleted object is still there" if backend.exists(key) else ""


def _range_read(backend: Backend, key: str) -> str:
    data = bytes(range(256)) * 64
    backend.put(key, data)
    buffer = bytearray(1000)
    try:
        backend.read_into(key, 5000, memoryview(buffer))
    except StoreError as error:
        return f"ranges cannot be read: {error}"
    if bytes(buffer) != data[5000:6000]:
        return "a range does not hold the bytes that were asked for"
    try:
        backend.read_into(key, len(data) - 10, memoryview(buffer))
    except CorruptData:
        return ""
    return "a range past the object's end is answered as if it were whole"
