"""Examination of a store for `fmscale doctor`: its promises, its speed, advice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fmscale.errors import AccessDenied, ObjectNotFound, StoreError
from fmscale.store.doctor.advice import advise
from fmscale.store.doctor.measure import Measurement, measure_existing, measure_written
from fmscale.store.doctor.probe import Capabilities, implementation, probe, recorded_capabilities
from fmscale.store.open import DEADLINE, open_store, parse_url


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of an examination."""

    url: str
    """The store, without credentials."""
    implementation: str
    """File system type, endpoint or protocol."""
    writable: bool
    """True if commits are safe here."""
    capabilities: Capabilities | None
    """Result of the probe; None for a store that cannot be written and holds no record of a probe."""
    measurements: tuple[Measurement, ...]
    """Latency and throughput."""
    repeated: int
    """Requests that had to be repeated (busy, stalled or cut)."""
    advice: tuple[str, ...]
    """Sentences for the user; empty if no rule applies."""


def examine(
    url: str,
    *,
    read_only: bool = False,
    again: bool = False,
    seconds: float = 2.0,
    deadline: float = DEADLINE,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Probe and measure the store at `url`, spending up to `seconds` on each kind of request.

    With `read_only`, or if writing is denied, only reads of existing objects are measured. `again` repeats the
    probe even if its result is recorded. `progress` gets the name of each stage. Raises ObjectNotFound for a missing
    folder, and the backend's error if the store cannot be reached.
    """
    _require_folder(url)
    backend = open_store(url, read_only=read_only, deadline=deadline)
    progress("probe")
    denied = ""
    capabilities = None
    try:
        capabilities = recorded_capabilities(backend) if read_only else probe(backend, again=again)
    except AccessDenied as error:
        try:
            backend.list_names()
        except StoreError:
            raise error from error.__cause__
        denied = str(error)
    writable = not read_only and not denied and capabilities is not None and capabilities.writable
    progress("measure")
    measure = measure_written if writable else measure_existing
    measurements = measure(backend, seconds, progress)
    repeated = sum(n for kind, n in backend.requests.count.items() if kind.startswith("retried"))
    return Report(
        url=backend.url,
        implementation=implementation(backend),
        writable=writable,
        capabilities=capabilities,
        measurements=tuple(measurements),
        repeated=repeated,
        advice=tuple(advise(backend, capabilities, measurements, repeated, denied)),
    )


def _require_folder(url: str) -> None:
    """Raise ObjectNotFound for a missing folder: opening a misspelt path would make a new, empty, good store."""
    place = parse_url(url)
    if place.scheme == "file" and not Path(place.bucket).is_dir():
        raise ObjectNotFound(
            "there is no such folder",
            found=place.bucket,
            remedy=f"Check the spelling, or make it: mkdir -p {place.bucket}",
        )
