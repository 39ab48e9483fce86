"""The outcome of a work unit: its sealed segments and the input it passed over, as JSON on the store.

The record is a unit's last object, after the seals: a unit without a record is still to be done. Records of an
earlier, killed run keep their counts, so that a job's totals are the same in every case.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json
from fmscale.store.segments.seal import SealInfo, check_version

FORMAT_VERSION = 1

FIRST_NAMES = 5
"""Names kept of the input skipped for a reason; the rest is only counted."""

NAME_CHARACTERS = 300
"""Longest kept name; the rest is cut off."""

BAD = {
    "undecodable": "not UTF-8",
    "broken": "broken: a record or file that cannot be read, or without text in the field",
    "name": "under a name that is not UTF-8 or that stores cannot keep",
}
"""Reasons that mean damage, an error with `--strict`, as people read them. The other reasons (binary, empty, hidden,
vcs, link, special, store, metadata) are choices that `sources` documents."""


@dataclass
class SkippedInput:
    """Input that was passed over, by reason: its count, and the first names."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count input that was passed over."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.first.setdefault(reason, [])
        if len(names) < FIRST_NAMES:
            names.append(name[:NAME_CHARACTERS])

    def merge(self, other: "SkippedInput") -> None:
        """Count the input that a later part of the job passed over."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = self.first.setdefault(reason, [])
            names.extend(other.first[reason][: FIRST_NAMES - len(names)])

    def to_json(self) -> dict[str, Any]:
        """JSON for a record, a commit or a table."""
        return {reason: {"count": n, "first": self.first[reason]} for reason, n in sorted(self.counts.items())}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SkippedInput":
        """Value with the JSON of `to_json`."""
        return cls(
            counts={reason: entry["count"] for reason, entry in content.items()},
            first={reason: list(entry["first"]) for reason, entry in content.items()},
        )

    def refuse_bad(self) -> None:
        """Raise DataError if damaged input was passed over (`--strict`)."""
        for reason, explained in BAD.items():
            if self.counts.get(reason):
                raise DataError(
                    f"Some of the input is {explained}",
                    found=", ".join(self.first[reason]) + (" …" if self.counts[reason] > FIRST_NAMES else ""),
                    remedy="Repair or leave out what is named, or run without --strict to skip it.",
                )


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """Outcome of a work unit."""

    unit: int
    """Number of the unit."""
    seals: Mapping[str, SealInfo]
    """Sealed segments by split; splits without a document are left out."""
    documents: int
    """Documents in the segments."""
    text_bytes: int
    """UTF-8 bytes of the documents."""
    skipped: SkippedInput
    """Input that the unit passed over."""

    def encode(self) -> bytes:
        """Canonical JSON text of the record."""
        return canonical_json({"format_version": FORMAT_VERSION, **asdict(self), "skipped": self.skipped.to_json()})


def decode_record(data: bytes) -> UnitRecord:
    """The record of a JSON text. Raises FormatError for a later format_version."""
    content = json.loads(data)
    check_version(content, "the record of a work unit")
    del content["format_version"]
    content["seals"] = {split: SealInfo(**seal) for split, seal in content["seals"].items()}
    content["skipped"] = SkippedInput.from_json(content["skipped"])
    return UnitRecord(**content)


def record_key(dataset: str, job: str, unit: int) -> str:
    """Key of a unit's record."""
    return f"datasets/{dataset}/jobs/{job}/{unit:08d}.json"


def finished_units(backend: Backend, dataset: str, job: str) -> set[int]:
    """Units that have a record, by one listing."""
    names = backend.list_names(f"datasets/{dataset}/jobs/{job}")
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}


def total(records: Iterable[UnitRecord], listed: SkippedInput) -> SkippedInput:
    """Input that a whole job passed over: at listing, then unit by unit."""
    sum_ = SkippedInput()
    sum_.merge(listed)
    for record in records:
        sum_.merge(record.skipped)
    return sum_
