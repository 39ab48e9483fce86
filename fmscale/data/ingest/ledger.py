"""The ledger of a dataset: the files that each commit took, with their names, places, stamps and tallies.

datasets/NAME/segments/JOB/files.arrow   the files of one commit, among its segments; its digest is in the commit

A source name and a split belong to the dataset: a later ingest finds a file by its place, or by its name and content.
Commits from before the ledger have the listing in the plan of their job: names, sizes and times.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from fmscale.data.ingest.content import Tally
from fmscale.data.ingest.formats import MAX_DOCUMENT, SINGLE
from fmscale.data.ingest.plan import HELDOUT, TRAIN, Options, document_id, plan_key
from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.commit import Commit
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.seal import check_version, job_folder, verified

FORMAT_VERSION = 1
HEADER_KEY = b"fmscale"
LEDGER_READS = 32
"""Ledgers read at once: a dataset that grew every day for years has 10^3 of them."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "place", "format", "stamp", "split")),
        *((name, pa.int64()) for name in ("bytes", "changed", "begin", "documents", "stop")),
        ("digest", pa.uint64()),
        ("sketch", pa.list_(pa.uint64())),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A file, or the new end of a file, that a commit took."""

    source: str
    place: str
    """URL at which it lay, without options; empty for commits from before the ledger."""
    format: str
    """Format in which it was read."""
    stamp: str
    """Identity of its state at this place, and of the files beside it; empty if it shows no change for sure."""
    bytes: int
    changed: int
    """Time of its last change in milliseconds."""
    begin: int
    """Place behind the documents of earlier commits."""
    tally: Tally
    """Documents of this commit; in a ledger, of all live commits."""
    split: str = ""
    """Split of the document of a file that is one document."""
    field: str = ""
    """Path of the text in records."""
    max_document: int = MAX_DOCUMENT
    """Bytes of the largest document that was taken."""
    whole: bool = True
    """False if a commit with earlier documents of the file is live no more."""
    listed: bool = False
    """True if only the listing is known, of a commit from before the ledger."""
    commits: tuple[int, ...] = ()
    """Numbers of the commits with documents of the file; known of a ledger's files."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The files of a dataset's live commits."""

    files: Mapping[str, KnownFile]
    """The last state of each file by its source name."""
    heldout: float | None
    """Share of the split `heldout`; None for a dataset that `ingest` has not added to."""
    pins: Mapping[str, str]
    """Splits of contents that another split than their hash's belongs to, by the hash in hex."""

    @cached_property
    def places(self) -> dict[str, KnownFile]:
        """Files by place."""
        return {entry.place: entry for entry in self.files.values() if entry.place}

    @cached_property
    def listed(self) -> dict[tuple[int, int], list[KnownFile]]:
        """Files of commits from before the ledger, by size and time."""
        found: dict[tuple[int, int], list[KnownFile]] = {}
        for entry in self.files.values():
            if entry.listed:
                found.setdefault((entry.bytes, entry.changed), []).append(entry)
        return found

    @cached_property
    def bases(self) -> set[str]:
        """Folders from which source names begin."""
        return {place.removesuffix(entry.source) for place, entry in self.places.items()}


def store_ledger(backend: Backend, dataset: str, job: str, entries: Sequence[KnownFile], options: Options) -> str:
    """Store the ledger of a job and return its digest."""
    own, summed = (set(kind.__slots__) & set(SCHEMA.names) for kind in (KnownFile, Tally))
    rows = [
        {name: getattr(entry, name) for name in own} | {name: getattr(entry.tally, name) for name in summed}
        for entry in entries
    ]
    read = {"field": options.field, "max_document": options.max_document}
    header = canonical_json({"format_version": FORMAT_VERSION, **read})
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({HEADER_KEY: header}))
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    store_once(backend, ledger_key(dataset, job), data)
    return metadata_digest(backend.get(ledger_key(dataset, job)))


def load_ledger(backend: Backend, dataset: str, commits: Iterable[Commit]) -> Ledger:
    """The ledger of these commits, in their order. Raises CorruptData and the errors of the store."""
    chosen = list(commits)
    with ThreadPoolExecutor(LEDGER_READS) as pool:
        parts = list(pool.map(lambda commit: _entries(backend, dataset, commit), chosen))
    files: dict[str, KnownFile] = {}
    for commit, (part, _) in zip(chosen, parts, strict=True):
        for entry in part:
            before = files.get(entry.source)
            numbers = (*(before.commits if before else ()), commit.number)
            files[entry.source] = replace(_joined(before, entry), commits=numbers)
    shares = [share for _, share in parts if share is not None]
    pins = [commit.body["extra"].get("ingest", {}).get("pins", {}) for commit in chosen]
    heldout = shares[0] if shares else None
    return Ledger(files=files, heldout=heldout, pins={hash_: split for part in pins for hash_, split in part.items()})


def ledger_key(dataset: str, job: str) -> str:
    """Key of the ledger of a job."""
    return f"{job_folder(dataset, job)}/files.arrow"


def _joined(before: KnownFile | None, entry: KnownFile) -> KnownFile:
    """The state of a file after a further entry."""
    if not entry.begin or before is None:
        return replace(entry, whole=not entry.begin)
    tally = Tally()
    tally.merge(before.tally)
    tally.merge(entry.tally)
    joins = before.whole and before.tally.stop == entry.begin
    return replace(entry, begin=0, tally=tally, split=entry.split or before.split, whole=joins)


def _entries(backend: Backend, dataset: str, commit: Commit) -> tuple[list[KnownFile], float | None]:
    """The files of a commit, and its share of held-out documents."""
    notes = commit.body["extra"].get("ingest", {})
    if "ledger" not in notes:
        return _listed(backend, dataset, commit)
    key = ledger_key(dataset, commit.job)
    data = verified(backend.get(key), notes["ledger"], f"The ledger {key}", "Restore the object from a copy.")
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        header: dict[str, Any] = json.loads(table.schema.metadata[HEADER_KEY])
        check_version(header, f"The ledger {key}", FORMAT_VERSION)
        entries = []
        for row in table.select(SCHEMA.names).cast(SCHEMA).to_pylist():
            tally = Tally(**{name: row.pop(name) for name in Tally.__slots__})
            entries.append(KnownFile(tally=tally, field=header["field"], max_document=header["max_document"], **row))
        return entries, float(notes["heldout"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Restore the object from a copy; it names the files of the commit."
        raise CorruptData(f"{key} is no ledger", found=repr(error), remedy=remedy) from error


def _listed(backend: Backend, dataset: str, commit: Commit) -> tuple[list[KnownFile], float | None]:
    """The files of a commit from before the ledger, as the plan of its job lists them."""
    key = plan_key(dataset, commit.job)
    if (data := find(backend, key)) is None:
        return [], None
    try:
        identity = json.loads(data)["identity"]
        rows = [
            KnownFile(
                source=source,
                place="",
                format=format,
                stamp="",
                bytes=size,
                changed=changed,
                begin=0,
                tally=Tally(),
                field=identity["field"],
                listed=True,
                split=_split_by_name(source, identity["heldout"]) if format in SINGLE else "",
            )
            for source, size, changed, format in identity["files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        remedy = "Restore the object from a copy; it names the files of the commit."
        raise CorruptData(f"{key} is not the plan of a job", found=str(error), remedy=remedy) from error
    return rows, identity["heldout"]


def _split_by_name(source: str, share: float) -> str:
    """The split of a file that is one document in commits from before the ledger, where the id decided."""
    held = int.from_bytes(document_id(source, 0)[:8], "big") < int(share * 2**64)
    return HELDOUT if held else TRAIN
