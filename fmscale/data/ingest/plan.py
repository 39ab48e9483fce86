"""The plan of an ingest job: which work units it has, as a function of its sorted listing and options only.

Files of a few KiB are gathered, in order, until a unit has about `unit_bytes`; bigger files that can be read
from the middle are cut into pieces of about that size. So any number of writers, and any number of runs, make
the same units with the same documents, and the unit's number and the job's digest name its segments.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from fmscale.data.ingest.formats import FilePart, splittable
from fmscale.data.ingest.record import SkippedInput
from fmscale.data.ingest.sources import File, Listing
from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.seal import check_version

FORMAT_VERSION = 1
"""Version of plans. It is part of a job's digest, and so of its segments' names: it changes with anything
that changes the documents or tokens of a unit.
"""

UNIT_BYTES = 64 << 20
"""Raw input of a unit: half a minute of work for one core, and two objects a GB on the store."""

LEAST_UNIT_BYTES = 4 << 20
UNITS = 32
"""Corpora below 2 GiB are cut into about 32 units, but of 4 MiB at least, so that several writers share them:
a unit costs about 20 small objects.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What makes documents and tokens of the listed files."""

    field: str
    """Path of the text in records."""
    heldout: float
    """Share of the documents that go to the split `heldout`."""
    tokenizer: str
    """`bpe:N` while it is to be trained on this corpus, otherwise the tokenizer's digest."""
    bos: bool
    """Whether a BOS token is put before each document."""
    eos: bool
    """Whether an EOS token is put after each document."""
    again: int = 0
    """How many earlier jobs of the same inputs were retired from the dataset: each has names of its own."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of a file, as a unit has it."""

    file: File
    """The file."""
    index: int
    """Number of the piece."""
    of: int
    """Pieces of the file."""

    @property
    def bytes(self) -> int:
        """Raw bytes of the piece."""
        return self.file.bytes * (self.index + 1) // self.of - self.file.bytes * self.index // self.of

    def piece(self, field: str) -> FilePart:
        """What a format's reader needs to know."""
        return FilePart(source=self.file.source, format=self.file.format, field=field, index=self.index, of=self.of)


@dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """A job, as it is stored; every writer reads it from the store."""

    files: tuple[File, ...]
    """All input files."""
    skipped: SkippedInput
    """What the listing passed over."""
    options: Options
    """What makes tokens of them."""
    unit_bytes: int
    """Raw input of a unit."""
    guessed: SkippedInput = field(default_factory=SkippedInput)
    """Files whose first bytes decided their format, by format."""

    @property
    def inputs(self) -> str:
        """Digest of the inputs alone: the same files read the same way, whatever the tokenizer."""
        return metadata_digest(canonical_json(self._inputs()))

    @property
    def job(self) -> str:
        """Digest of the job; where its listing roots lie is no part of it."""
        return metadata_digest(canonical_json(self._identity()))

    def units(self) -> list[list[Work]]:
        """The work units in order."""
        return list(group(self.files, self.unit_bytes))

    def encode(self, tokenizer: str, bos: int | None, eos: int | None) -> bytes:
        """The stored plan: with the tokenizer that was chosen or trained, and the ids of BOS and EOS."""
        found = {"tokenizer": tokenizer, "bos": bos, "eos": eos}
        content = {"identity": self._identity(), "found": found}
        noted = {"skipped": self.skipped.to_json(), "guessed": self.guessed.to_json()}
        return canonical_json({**content, **noted, "format_version": FORMAT_VERSION})

    def _inputs(self) -> dict[str, Any]:
        files = [[file.source, file.bytes, file.changed, file.format] for file in self.files]
        return {"files": files, "field": self.options.field, "heldout": self.options.heldout}

    def _identity(self) -> dict[str, Any]:
        options = self.options
        return {
            **self._inputs(),
            "where": [[file.root, file.name] for file in self.files],
            "format_version": FORMAT_VERSION,
            "tokenizer": options.tokenizer,
            "bos": options.bos,
            "eos": options.eos,
            "again": options.again,
            "unit_bytes": self.unit_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan read back, with what was found out when the job began."""

    plan: IngestPlan
    tokenizer: str
    """Digest of the tokenizer."""
    bos: int | None
    """Id put before each document."""
    eos: int | None
    """Id put after each document."""


def make_plan(listing: Listing, options: Options, unit_bytes: int | None) -> IngestPlan:
    """The plan for a listing; `unit_bytes` is chosen by the size of the corpus unless given."""
    size = sum(file.bytes for file in listing.files)
    chosen = unit_bytes or min(UNIT_BYTES, max(LEAST_UNIT_BYTES, size // UNITS))
    return IngestPlan(
        files=listing.files,
        skipped=listing.skipped,
        options=options,
        unit_bytes=chosen,
        guessed=listing.guessed,
    )


def group(files: Sequence[File], unit_bytes: int) -> Iterator[list[Work]]:
    """Pieces of the files, in order, in groups of about `unit_bytes`."""
    unit: list[Work] = []
    size = 0
    for file in files:
        pieces = max(1, file.bytes // unit_bytes) if splittable(file.source, file.format) else 1
        for index in range(pieces):
            work = Work(file=file, index=index, of=pieces)
            if unit and size + work.bytes > unit_bytes:
                yield unit
                unit, size = [], 0
            unit.append(work)
            size += work.bytes
    if unit:
        yield unit


def plan_key(dataset: str, job: str) -> str:
    """Where a job's plan is stored."""
    return f"datasets/{dataset}/jobs/{job}.json"


def load_plan(backend: Backend, dataset: str, job: str) -> StoredPlan | None:
    """The stored plan of a job, or None before it was begun. Raises CorruptData, FormatError."""
    key = plan_key(dataset, job)
    try:
        content: Mapping[str, Any] = json.loads(backend.get(key))
    except ObjectNotFound:
        return None
    check_version(content, key)
    identity = content["identity"]
    plan = IngestPlan(
        files=tuple(
            File(source=source, bytes=size, changed=changed, format=format, root=root, name=name)
            for (source, size, changed, format), (root, name) in zip(identity["files"], identity["where"], strict=True)
        ),
        skipped=SkippedInput.from_json(content["skipped"]),
        options=Options(**{name: identity[name] for name in ("field", "heldout", "tokenizer", "bos", "eos", "again")}),
        unit_bytes=identity["unit_bytes"],
        guessed=SkippedInput.from_json(content.get("guessed", {})),
    )
    if plan.job != job:
        raise CorruptData(
            f"{key} is not the plan of the job that it is named after",
            found=plan.job,
            remedy="Delete it and run the job again.",
        )
    return StoredPlan(plan=plan, **content["found"])


def document_id(source: str, start: int) -> bytes:
    """The stable id of a document, 16 bytes: xxh3_128 of its source name, a NUL, and where it begins there.

    Its end is no part: so a text file keeps its id, and its split, when it is edited.
    """
    return xxhash.xxh3_128_digest(f"{source}\0{start}".encode())


def is_heldout(identity: bytes, fraction: float) -> bool:
    """Whether the document belongs to the held-out split: by the first half of its id."""
    return int.from_bytes(identity[:8], "big") < int(fraction * 2**64)
