"""The plan of an ingest job: its work units, a function of the sorted listing and the options only.

Small files are gathered, in order, until a unit has about `unit_bytes`; bigger files that can be read from the
middle are cut into parts of about that size. Any number of writers and of runs make the same units with the same
documents, and a unit's number and the job's digest name its segments.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any

import xxhash

from fmscale.data.ingest.formats import BESIDE, MAX_DOCUMENT, FilePart, splittable
from fmscale.data.ingest.record import SkippedInput
from fmscale.data.ingest.sources import File, Listing
from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.seal import check_version

FORMAT_VERSION = 2
"""Version of plans. It is part of a job's digest and so of its segments' names: it changes with every change of a
unit's documents or tokens.
"""

UNIT_BYTES = 64 << 20
"""Raw input of a unit: half a minute of work for a core, and two objects a GB on the store."""

TRAIN, HELDOUT = "train", "heldout"

LEAST_UNIT_BYTES = 4 << 20
UNITS = 32
"""Units of a corpus below 2 GiB, so that several writers share it; a unit has 4 MiB at least, because it costs
about 20 small objects.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that make documents and tokens of the listed files."""

    field: str
    """Path of the text in records; empty for a job that keeps records."""
    heldout: float
    """Share of the documents that go to the split `heldout`."""
    tokenizer: str
    """`bpe:N` for a tokenizer that this job trains, otherwise the tokenizer's digest."""
    bos: bool
    """True if a BOS token stands before each document."""
    eos: bool
    """True if an EOS token stands after each document."""
    max_document: int = MAX_DOCUMENT
    """Bytes of the largest document or record."""
    again: int = 0
    """Count of earlier jobs of these inputs that cannot go on, retired or of files that changed: each job has its own
    names.
    """
    pins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Splits of contents that another split than their hash's belongs to, by the hash in hex."""
    replaced: tuple[str, ...] = ()
    """Source names whose earlier documents are masked with the job's commit."""
    by_name: bool = False
    """True in plans of version 1, in which the ids decide the splits."""
    shape: str = ""
    """Shape of records of messages; empty for all others, and then not in the job's identity."""

    def split(self, content: int) -> str:
        """The split of a document or record with a content of this hash."""
        pinned = self.pins.get(f"{content:016x}") if self.pins else None
        return pinned or (HELDOUT if content < int(self.heldout * 2**64) else TRAIN)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A part of a file, in a unit."""

    file: File
    index: int
    """Number of the part."""
    of: int
    """Count of the file's parts."""
    beside: tuple[File, ...] = ()
    """Files whose content goes into the record of a media file."""

    @property
    def bytes(self) -> int:
        """Raw bytes of the part, and of the files beside it."""
        part = self.file.bytes * (self.index + 1) // self.of - self.file.bytes * self.index // self.of
        return part + sum(file.bytes for file in self.beside)

    def part(self, field: str | None, max_document: int) -> FilePart:
        """The part as a format's reader takes it."""
        file = self.file
        return FilePart(
            source=file.source,
            format=file.format,
            field=field,
            index=self.index,
            of=self.of,
            begin=file.begin,
            max_document=max_document,
        )


@dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """Plan of a job; every writer reads it from the store."""

    files: tuple[File, ...]
    skipped: SkippedInput
    """Input that the listing passed over."""
    options: Options
    unit_bytes: int
    """Raw input of a unit."""
    guessed: SkippedInput = field(default_factory=SkippedInput)
    """Files whose first bytes decided the format, by format."""

    @property
    def job(self) -> str:
        """Digest of the job, without the places of its listing roots."""
        return metadata_digest(canonical_json(self._identity()))

    def units(self) -> list[list[Work]]:
        """The work units in order."""
        return list(group(self.files, self.unit_bytes))

    def same_state(self, other: "IngestPlan") -> bool:
        """True unless the stamps show that a file has changed between the listings of both plans."""
        pairs = zip(self.files, other.files, strict=True)
        return all(one.stamp == two.stamp or not (one.stamp and two.stamp) for one, two in pairs)

    def encode(self, tokenizer: str | None, bos: int | None, eos: int | None) -> bytes:
        """JSON of the plan with the digest of its tokenizer, chosen or trained, and the ids of BOS and EOS."""
        content = {
            "identity": self._identity(),
            "places": [[file.place, file.stamp] for file in self.files],
            "found": {"tokenizer": tokenizer, "bos": bos, "eos": eos},
            "skipped": self.skipped,
            "guessed": self.guessed,
            "format_version": FORMAT_VERSION,
        }
        return canonical_json(content)

    def _identity(self) -> dict[str, Any]:
        old = self.options.by_name
        files = [[file.source, file.bytes, file.changed, file.format, file.begin] for file in self.files]
        names = (
            OLD_OPTIONS if old else {one.name for one in fields(Options) if one.name != "shape" or self.options.shape}
        )
        return {
            "files": [file[:4] for file in files] if old else files,
            **{name: value for name, value in asdict(self.options).items() if name in names},
            "where": [[file.root, file.name] for file in self.files],
            "format_version": 1 if old else FORMAT_VERSION,
            "unit_bytes": self.unit_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan from the store, with its tokenizer."""

    plan: IngestPlan
    tokenizer: str | None
    """Digest of the tokenizer; None for records."""
    bos: int | None
    """Id before each document, or None."""
    eos: int | None
    """Id after each document, or None."""


def make_plan(listing: Listing, options: Options, unit_bytes: int | None) -> IngestPlan:
    """The plan for a listing; `unit_bytes` depends on the size of the corpus by default."""
    size = sum(file.bytes for file in listing.files)
    return IngestPlan(
        files=listing.files,
        skipped=listing.skipped,
        options=options,
        unit_bytes=unit_bytes or min(UNIT_BYTES, max(LEAST_UNIT_BYTES, size // UNITS)),
        guessed=listing.guessed,
    )


def group(files: Sequence[File], unit_bytes: int) -> Iterator[list[Work]]:
    """Parts of the files, in order, in groups of about `unit_bytes`."""
    unit: list[Work] = []
    size = 0
    for file in files:
        if file.format == BESIDE:
            unit[-1] = replace(unit[-1], beside=(*unit[-1].beside, file))
            size += file.bytes
            continue
        parts = max(1, file.bytes // unit_bytes) if splittable(file.source, file.format) else 1
        for index in range(parts):
            work = Work(file=file, index=index, of=parts)
            if file.format == "jsonl" and parts > 1 and file.bytes * (index + 1) // parts <= file.begin:
                continue
            if unit and size + work.bytes > unit_bytes:
                yield unit
                unit, size = [], 0
            unit.append(work)
            size += work.bytes
    if unit:
        yield unit


FILE = ("source", "bytes", "changed", "format", "begin", "root", "name", "place", "stamp")
"""Fields of a file in the order of a stored plan."""

OLD_OPTIONS = frozenset({"field", "heldout", "tokenizer", "bos", "eos", "again"})
"""Options in plans of version 1."""


def plan_key(dataset: str, job: str) -> str:
    """Key of a job's plan."""
    return f"datasets/{dataset}/jobs/{job}.json"


def load_plan(backend: Backend, dataset: str, job: str) -> StoredPlan | None:
    """The stored plan of a job, or None before the job began. Raises CorruptData, FormatError."""
    key = plan_key(dataset, job)
    if (data := find(backend, key)) is None:
        return None
    content: Mapping[str, Any] = json.loads(data)
    check_version(content, key, FORMAT_VERSION)
    identity = content["identity"]
    old = content["format_version"] == 1
    options = {
        one.name: identity[one.name] for one in fields(Options) if one.name in (OLD_OPTIONS if old else identity)
    }
    columns = (FILE[:4], FILE[5:7]) if old else (FILE[:5], FILE[5:7], FILE[7:])
    stored = zip(*([identity["files"], identity["where"]] + ([] if old else [content["places"]])), strict=True)
    plan = IngestPlan(
        files=tuple(File(**dict(zip(chain(*columns), chain(*parts), strict=True))) for parts in stored),
        skipped=SkippedInput(content["skipped"]),
        options=Options(**{**options, "replaced": tuple(options.get("replaced", ())), "by_name": old}),
        unit_bytes=identity["unit_bytes"],
        guessed=SkippedInput(content.get("guessed", {})),
    )
    if plan.job != job:
        raise CorruptData(
            f"{key} is not the plan of the job that it is named after",
            found=plan.job,
            remedy="Delete it and run the job again.",
        )
    return StoredPlan(plan=plan, **content["found"])


def document_id(source: str, start: int) -> bytes:
    """The stable id of a document, 16 bytes: xxh3_128 of its source name, a NUL, and its first byte or row.

    The id does not depend on the document's content: an edited text file keeps its id.
    """
    return xxhash.xxh3_128_digest(f"{source}\0{start}".encode())
