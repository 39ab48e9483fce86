"""Commits of a dataset: the content of one log entry, and its references."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.manifest import Manifest, SplitTotals, open_manifest
from fmscale.store.log.entry import LogEntry
from fmscale.store.segments.seal import check_version, columns_folder, job_folder

MASKING_VERSION = 2
"""Version of commits that mask documents of earlier commits: a reader that knows no masks must not take them."""


class Manifests(Mapping[str, Manifest]):
    """Manifests by split; each opens at its first use."""

    def __init__(self, backend: Backend, recorded: Mapping[str, Any]) -> None:
        self._backend = backend
        self._recorded = recorded
        self._lock = Lock()
        self._opened: dict[str, Manifest] = {}

    def __getitem__(self, split: str) -> Manifest:
        with self._lock:
            if split not in self._opened:
                entry = self._recorded[split]
                self._opened[split] = open_manifest(self._backend, entry["key"], entry["digest"])
            return self._opened[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorded)

    def __len__(self) -> int:
        return len(self._recorded)


@dataclass(frozen=True, kw_only=True, eq=False)
class Commit:
    """One live commit of a dataset."""

    number: int
    """Place of the commit in the dataset's log."""
    time: float
    """Time of writing, seconds since the epoch, by the writer's clock."""
    digest: str
    """Digest of the commit's log entry."""
    kind: str
    """`tokens` or `records`: the content of its segments."""
    job: str
    """Digest of the plan of the commit's job."""
    tokenizer: str | None
    """Digest of the tokenizer, or None for records."""
    bos: int | None
    """Token put before each document, if any."""
    eos: int | None
    """Token put after each document, if any."""
    dtype: str
    """Type of the tokens; empty for records."""
    totals: Mapping[str, SplitTotals]
    """Sizes by split."""
    manifests: Mapping[str, Manifest]
    """Manifests by split, each opened at its first use."""
    body: Mapping[str, Any]
    """The whole body of the log entry, with the job's notes under `extra`."""


def decode_commit(backend: Backend, entry: LogEntry) -> Commit:
    """The commit that a log entry records. Raises FormatError for a later format_version."""
    body = entry.body
    check_version(body, f"commit {entry.number}", MASKING_VERSION)
    return Commit(
        number=entry.number,
        time=entry.time,
        digest=entry.digest,
        totals={
            split: SplitTotals(**{name: m[name] for name in ("segments", "tokens", "documents", "bytes")})
            for split, m in body["manifests"].items()
        },
        manifests=Manifests(backend, body["manifests"]),
        body=body,
        **{name: body[name] for name in ("kind", "job", "tokenizer", "bos", "eos", "dtype")},
    )


def references(dataset: str, body: Mapping[str, Any]) -> list[str]:
    """Objects that a commit of the dataset owns, for garbage collection: keys, and folders ending in a slash.

    Tokenizers are left out: all datasets of the store share them, and they are small. Columns are derived after the
    commit, so that their folder stands for them.
    """
    keys = sorted(manifest["key"] for manifest in body["manifests"].values())
    folders = sorted(columns_folder(dataset, manifest["digest"]) for manifest in body["manifests"].values())
    return [*keys, *folders, job_folder(dataset, body["job"]) + "/"]
