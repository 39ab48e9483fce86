"""One entry of a log: its fields, its bytes, its checks."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fmscale.errors import CorruptData, FormatError, StoreError
from fmscale.store.digest import canonical_json, metadata_digest

FORMAT_VERSION = 2
"""Version of new entries; entries of version 1 do not name their log."""

TEXTS = ("kind", "uuid", "writer", "previous")
"""Stored fields of every version that are text."""


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One durable entry of a log."""

    log: str
    """Prefix of the log: in another place the entry is not valid."""
    number: int
    """Place in the log, from 0, without gaps."""
    kind: str
    """Meaning of `body`: commit, retire, pin, lease, ..."""
    uuid: str
    """Id of this append: after a lost response it tells the writer's own entry from another writer's."""
    time: float
    """Seconds since the epoch by the writer's clock; the log's order does not depend on it."""
    lease: int
    """Number of lease entries in the log before this entry (a lease entry counts itself)."""
    body: dict[str, Any]
    """Content of the entry, as JSON."""
    writer: str
    """host:pid of the writing process, for people."""
    previous: str
    """Digest of the entry before this one, or "" for the first: a replaced entry breaks the chain."""
    digest: str
    """Digest of this entry's other fields."""


def encode(entry: LogEntry, *, skippable: bool = False) -> bytes:
    """Canonical JSON of the entry with its digest computed anew.

    `skippable` lets readers skip the entry if they do not know its kind. Raises StoreError if the body is
    not JSON.
    """
    fields = {**vars(entry), "format_version": FORMAT_VERSION, "skippable": skippable}
    fields["epoch"] = fields.pop("lease")
    del fields["digest"]
    try:
        fields["digest"] = metadata_digest(canonical_json(fields))
        return canonical_json(fields)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"a {entry.kind} entry's body cannot be written as JSON: {error}",
            remedy="Use dicts with string keys, lists, strings, finite numbers, booleans and None.",
        ) from error


def decode(data: bytes, key: str, number: int, kinds: frozenset[str]) -> LogEntry:
    """The entry stored under `key` as entry `number`.

    The rule of the digest (all other fields, canonical JSON) stays the same in every format version, so that
    damage and a newer version can be told apart. Raises CorruptData for damaged bytes or another entry's bytes,
    and FormatError for a newer format_version or for a kind that is neither in `kinds` nor skippable: such an
    entry could matter (a reader that overlooks a retire uses deleted objects).
    """
    try:
        fields = json.loads(data)
        digest = fields.pop("digest")
        version = fields["format_version"]
        intact = digest == metadata_digest(canonical_json(fields)) and fields["number"] == number
        intact &= type(version) is int and (version > FORMAT_VERSION or _typed(fields))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptData(
            f"log entry {key} is damaged",
            found=data[:80],
            remedy="Restore this object from a copy of the store; without it later entries have no base.",
        )
    if version > FORMAT_VERSION:
        raise FormatError(
            f"log entry {key} was written by a newer fmscale",
            found=f"format_version {version}, this one reads up to {FORMAT_VERSION}",
            remedy="Upgrade fmscale here.",
        )
    if fields["kind"] not in kinds and not fields.get("skippable"):
        raise FormatError(
            f"log entry {key} is of a kind that this reader does not know and must not skip",
            found=fields["kind"],
            remedy=f"Upgrade fmscale, or check the path: kinds known here are {', '.join(sorted(kinds))}.",
        )
    log = key.rpartition("/log/")[0]
    if version > 1 and fields.get("log") != log:
        raise CorruptData(
            f"log entry {key} belongs to another log", found=fields.get("log"), remedy="Restore this log from a copy."
        )
    names = (*TEXTS, "time", "body")
    return LogEntry(
        log=log, number=number, lease=fields["epoch"], digest=digest, **{name: fields[name] for name in names}
    )


def _typed(fields: dict[str, Any]) -> bool:
    texts = all(isinstance(fields[name], str) for name in TEXTS)
    lease, time, body = fields["epoch"], fields["time"], fields["body"]
    return texts and type(lease) is int and lease >= 0 and isinstance(time, int | float) and isinstance(body, dict)


def check_inside(entry: LogEntry, names: Iterable[str], folder: str) -> None:
    """Raise CorruptData unless all names of objects in an entry lie in its log's own `folder`: an entry of version 1
    that was put into another log would pass off, or delete, objects of the log that it comes from.
    """
    own = f"{entry.log}/{folder}"
    foreign = [name for name in names if not name.startswith(own)]
    if foreign:
        raise CorruptData(
            f"entry {entry.number} of the log {entry.log} names objects outside {own}",
            found=foreign[0],
            remedy="It belongs to another log: restore this log from a copy.",
        )
