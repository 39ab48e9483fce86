"""Seals: the last object of a segment, which names every other object with its size and digest.

A segment exists once it has a `seal.json`. Its name is a function of the job's plan and the work unit, so
every writer of the unit writes the same bytes to the same keys. A killed job continues when it runs again: it
skips the sealed units.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmscale.errors import Conflict, CorruptData, FormatError
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import canonical_json, metadata_digest

FORMAT_VERSION = 1
"""Version of new manifests and segments of tokens; every version up to it can be read."""

RECORDS_VERSION = 2
"""Version of new segments of records; every version up to it can be read."""

UPLOADS = 8
"""Objects of a segment stored at once: their latencies overlap, and a segment has about ten."""


@dataclass(frozen=True, kw_only=True)
class SealInfo:
    """Record of a sealed segment in a commit."""

    digest: str
    """Digest of `seal.json`, from which every byte of the segment is verified."""
    kind: str
    """`tokens` or `records`."""
    split: str
    """Split that the segment belongs to, for instance `train`."""
    dtype: str
    """Type of the tokens; empty for records."""
    tokens: int
    """Tokens in the segment; 0 for records."""
    documents: int
    bytes: int
    """Bytes of all objects of the segment together."""


def job_folder(dataset: str, job: str) -> str:
    """Folder of all segments that the job with digest `job` makes for a dataset."""
    return f"datasets/{dataset}/segments/{job[:16]}"


def columns_folder(dataset: str, manifest: str) -> str:
    """Folder, with its slash, of the derived columns of the commit whose split has this manifest."""
    return f"datasets/{dataset}/columns/{manifest}/"


def segment_prefix(dataset: str, job: str, unit: int, split: str) -> str:
    """Write-once prefix of the segment that work unit `unit` of that job makes for a split.

    A job has one folder: commits reference, and retires name, this folder instead of up to 10^6 segments.
    """
    return f"{job_folder(dataset, job)}/{unit:08d}-{split}"


def check_version(document: Mapping[str, Any], where: str, latest: int = FORMAT_VERSION) -> None:
    """Raise FormatError if `document` is of a later format_version than `latest`, or has none."""
    version = document.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= latest:
        raise FormatError(
            f"{where} is of a format_version that this fmscale does not read",
            found=version,
            remedy=f"It reads versions 1 to {latest}; upgrade fmscale to read a later one.",
        )


RESTORE = "Restore the object from a copy, or ingest its segment again."


def verified(data: bytes, digest: str, where: str, remedy: str = RESTORE) -> bytes:
    """The bytes, verified. Raises CorruptData if they have another `metadata_digest`."""
    actual = metadata_digest(data)
    if actual != digest:
        raise CorruptData(
            f"{where} does not have the digest {digest} recorded for it",
            found=actual,
            remedy=remedy,
        )
    return data


def decode_seal(data: bytes, where: str, kind: str = "") -> dict[str, Any]:
    """Content of a verified seal. Raises FormatError for a later version, or for a segment of another kind
    than `kind`.
    """
    seal: dict[str, Any] = json.loads(data)
    check_version(seal, where, RECORDS_VERSION if seal.get("kind") == "records" else FORMAT_VERSION)
    if kind and seal["kind"] != kind:
        raise FormatError(
            f"{where} is not a segment of {kind}", found=seal["kind"], remedy=f"Read it as a segment of {seal['kind']}."
        )
    return seal


def open_sealed(
    backend: Backend, prefix: str, seal_digest: str, kind: str, version: int
) -> tuple[dict[str, Any], pa.RecordBatch]:
    """Seal and checksums.arrow of a segment of this kind and format_version, both verified from `seal_digest` on.

    Raises CorruptData for damaged bytes, ObjectNotFound for a missing object, and the errors of `decode_seal`.
    """
    where, key = f"{prefix}/seal.json", f"{prefix}/checksums.arrow"
    # A remote store gets both requests at once: their latency is 100 times the cost of a thread.
    several = nullcontext() if backend.local_path(key) is not None else ThreadPoolExecutor(1)
    with several as pool:
        checksums = pool.submit(backend.get, key) if pool is not None else None
        seal = decode_seal(verified(backend.get(where), seal_digest, where), where, kind)
    if seal["format_version"] != version:
        raise FormatError(
            f"{where} has another version than this reader reads",
            found=seal["format_version"],
            remedy="`records` reads version 2 of record segments, `records_version_1` version 1.",
        )
    data = checksums.result() if checksums is not None else backend.get(key)
    data = verified(data, seal["objects"]["checksums.arrow"]["digest"], key)
    return seal, pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)


def seal_info(data: bytes) -> SealInfo:
    """Record, for a commit, of the segment whose seal has these bytes."""
    seal = decode_seal(data, "seal.json")
    sizes = [entry["bytes"] for entry in seal["objects"].values()]
    sizes += [shard["bytes"] for array in seal.get("arrays", {}).values() for shard in array["shards"]]
    return SealInfo(
        digest=metadata_digest(data),
        kind=seal["kind"],
        split=seal["split"],
        dtype=seal.get("dtype", ""),
        tokens=seal.get("tokens", 0),
        documents=seal["documents"],
        bytes=sum(sizes) + len(data),
    )


def sealed(backend: Backend, prefix: str) -> SealInfo | None:
    """The seal of the segment under `prefix`, or None if the segment is not sealed yet."""
    data = find(backend, f"{prefix}/seal.json")
    return None if data is None else seal_info(data)


def store_segment(backend: Backend, prefix: str, files: Mapping[str, Path], seal: dict[str, Any]) -> SealInfo:
    """Store a segment's files (by key relative to `prefix`), then its seal; durable when this returns.

    Nothing is stored if the segment is sealed with the same bytes already. Raises Conflict if it is sealed
    with other bytes: two writers of one work unit disagreed.
    """
    data = canonical_json(seal)
    key = f"{prefix}/seal.json"
    if not _already_sealed(backend, key, data):
        with ThreadPoolExecutor(UPLOADS) as pool:
            for upload in [pool.submit(backend.put_file, f"{prefix}/{k}", path) for k, path in files.items()]:
                upload.result()
        if not store_once(backend, key, data):
            _already_sealed(backend, key, data)
    return seal_info(data)


def _already_sealed(backend: Backend, key: str, data: bytes) -> bool:
    content = find(backend, key)
    if content is not None and content != data:
        raise Conflict(
            f"{key} is sealed already, with other content than this writer made of the same work unit",
            found=f"{metadata_digest(content)} on the store, {metadata_digest(data)} here",
            remedy="The job's inputs or its software changed since: run it again as a new job (new digest), "
            "which writes under new names.",
        )
    return content is not None
