"""The outcome of a work unit: its sealed segments and the input that it passed over, as JSON on the store.

The record is a unit's last object, after the seals: a unit without a record is still to be done. Records of an
earlier, killed run keep their counts, so that a job's totals are the same in every case.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypedDict

from fmscale.data.chat import formats
from fmscale.data.ingest.content import Tally
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json
from fmscale.store.segments.seal import SealInfo, check_version

FORMAT_VERSION = 2

FIRST_NAMES = 5
"""Names kept of the input skipped for a reason; further input is only counted."""

SHOWN_NAMES = 3
"""Names shown of them in an error."""

NAME_CHARACTERS = 300
"""Longest kept name; the rest is cut off."""

BAD = {
    "undecodable": "not UTF-8",
    "broken": "broken: a record or file that cannot be read, or without text in the field",
    "unreadable": "not readable: a right or a part of the disk is missing",
    "name": "under a name that is not UTF-8 or that stores cannot keep",
    **formats.FAULTS,
}
"""Reasons that mean damage, an error with `--strict`, with words for people. The other reasons (binary, empty, long,
hidden, vcs, link, special, store, metadata, and text for records) are choices that `sources` documents."""


REMEDIES = {
    "broken": "Check --format and --field against what is named, and repair or leave out what is damaged.",
    "undecodable": "Convert texts to UTF-8.",
    "unreadable": "Give this user the right to read them.",
    "long": "Raise --max-document.",
    "binary": "--as records takes tables, JSON, tars and media.",
    "text": "Without --as records texts are taken.",
    **formats.REMEDIES,
}
"""Advice for each reason, for a job without any document."""


class SkippedNames(TypedDict):
    """Input that was passed over for a reason."""

    count: int
    first: list[str]


class SkippedInput(dict[str, SkippedNames]):
    """Input that was passed over, by reason: its count and the first names. Its items are its JSON."""

    def add(self, reason: str, name: str) -> None:
        """Count input that was passed over."""
        self.merge({reason: {"count": 1, "first": [name[:NAME_CHARACTERS]]}})

    def merge(self, other: Mapping[str, SkippedNames]) -> None:
        """Count the input that a later part of the job passed over."""
        for reason, more in other.items():
            entry = self.setdefault(reason, {"count": 0, "first": []})
            entry["count"] += more["count"]
            entry["first"] += more["first"][: FIRST_NAMES - len(entry["first"])]

    def counted(self) -> str:
        """The count of each reason with the first names, in words for an error."""
        return ", ".join(
            f"{self[reason]['count']} {reason} ({'; '.join(self[reason]['first'][:SHOWN_NAMES])})"
            for reason in sorted(self)
        )

    def remedy(self) -> str:
        """Advice for a job that all reasons together left without input."""
        return " ".join(REMEDIES[reason] for reason in REMEDIES if reason in self)

    def refuse_bad(self) -> None:
        """Raise DataError if damaged input was passed over (`--strict`)."""
        for reason, explained in BAD.items():
            if bad := self.get(reason):
                raise DataError(
                    f"Some of the input is {explained}",
                    found=", ".join(bad["first"]) + (" …" if bad["count"] > FIRST_NAMES else ""),
                    remedy="Repair or leave out what is named, or run without --strict to skip it.",
                )


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """Outcome of a work unit."""

    unit: int
    seals: Mapping[str, SealInfo]
    """Sealed segments by split; splits without a document are left out."""
    documents: int
    text_bytes: int
    """UTF-8 bytes of the documents."""
    skipped: SkippedInput
    """Input that the unit passed over."""
    tallies: Mapping[str, Tally]
    """Documents of each file, or part of a file, by source name."""
    splits: Mapping[str, str]
    """Splits of files that are one document, but those in `train`."""

    def encode(self) -> bytes:
        """Canonical JSON text of the record."""
        return canonical_json({"format_version": FORMAT_VERSION, **asdict(self)})


def decode_record(data: bytes) -> UnitRecord:
    """The record of a JSON text. Raises FormatError for a later format_version."""
    content = json.loads(data)
    check_version(content, "the record of a work unit", FORMAT_VERSION)
    del content["format_version"]
    content["seals"] = {split: SealInfo(**seal) for split, seal in content["seals"].items()}
    content["skipped"] = SkippedInput(content["skipped"])
    content["tallies"] = {source: Tally(**tally) for source, tally in content.get("tallies", {}).items()}
    content.setdefault("splits", {})
    return UnitRecord(**content)


def record_key(dataset: str, job: str, unit: int) -> str:
    """Key of a unit's record."""
    return f"datasets/{dataset}/jobs/{job}/{unit:08d}.json"


def finished_units(backend: Backend, dataset: str, job: str) -> set[int]:
    """Units that have a record, by one listing."""
    names = backend.list_names(f"datasets/{dataset}/jobs/{job}")
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}


def total(records: Iterable[UnitRecord], listed: SkippedInput) -> SkippedInput:
    """Input that a whole job passed over: first at the listing, then unit by unit."""
    sum_ = SkippedInput()
    for skipped in (listed, *(record.skipped for record in records)):
        sum_.merge(skipped)
    return sum_
