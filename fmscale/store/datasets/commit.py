"""Commits of a dataset: the content of one log entry, and its references."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.manifest import Manifest, SplitTotals, open_manifest
from fmscale.store.log.entry import LogEntry, check_inside
from fmscale.store.segments.seal import check_version, columns_folder, job_folder

MASKING_VERSION = 2
"""Version of commits that mask documents of earlier commits: a reader that knows no masks must not take them."""

LARGEST = 2**60
"""Bound of each total of a split, an exabyte: sums of totals stay far from 2^64."""


class Manifests(Mapping[str, Manifest]):
    """Manifests by split; each opens at its first use."""

    def __init__(self, backend: Backend, dataset: str, body: Mapping[str, Any]) -> None:
        self._backend = backend
        self._dataset = dataset
        self._body = body
        self._recorded: Mapping[str, Any] = body["manifests"]
        self._lock = Lock()
        self._opened: dict[str, Manifest] = {}

    def __getitem__(self, split: str) -> Manifest:
        with self._lock:
            if split not in self._opened:
                entry = self._recorded[split]
                manifest = open_manifest(self._backend, entry["key"], entry["digest"])
                check_manifest(manifest, split, self._dataset, self._body)
                self._opened[split] = manifest
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
    """The commit that a log entry records. Raises FormatError for a later format_version, CorruptData for an entry of
    another dataset, or with a total that no dataset has.
    """
    body = entry.body
    check_version(body, f"commit {entry.number}", MASKING_VERSION)
    try:
        check_inside(entry, [manifest["key"] for manifest in body["manifests"].values()], "manifests/")
        totals = {
            split: SplitTotals(**{name: manifest[name] for name in SplitTotals.__annotations__})
            for split, manifest in body["manifests"].items()
        }
        sizes = [size for total in totals.values() for size in vars(total).values()]
        found: Any = [size for size in sizes if type(size) is not int or not 0 <= size < LARGEST]
        commit = Commit(
            number=entry.number,
            time=entry.time,
            digest=entry.digest,
            totals=totals,
            manifests=Manifests(backend, entry.log.removeprefix("datasets/"), body),
            body=body,
            **{name: body[name] for name in ("kind", "job", "tokenizer", "bos", "eos", "dtype")},
        )
    except (KeyError, TypeError, AttributeError) as error:
        found = repr(error)
    if not found:
        return commit
    raise CorruptData(
        f"entry {entry.number} of the log {entry.log} is no commit",
        found=found,
        remedy="Restore this log from a copy of the store, or ingest again into another dataset.",
    )


def check_manifest(manifest: Manifest, split: str, dataset: str, body: Mapping[str, Any]) -> None:
    """Raise CorruptData unless the header of a split's manifest agrees with the commit's record of it."""
    recorded = body["manifests"][split]
    expected = {
        "split": split,
        "folder": job_folder(dataset, body["job"]),
        **{name: body[name] for name in ("kind", "dtype", "job")},
        **{name: recorded[name] for name in SplitTotals.__annotations__},
    }
    differ = [name for name, value in expected.items() if manifest.header.get(name) != value]
    if differ:
        raise CorruptData(
            f"the manifest {recorded['key']} is not the one of its commit",
            found={name: f"{manifest.header.get(name)}, the commit records {expected[name]}" for name in differ},
            remedy="Restore the dataset's log and manifests from one copy of the store.",
        )


def references(dataset: str, body: Mapping[str, Any]) -> list[str]:
    """Objects that a commit of the dataset owns, for garbage collection: keys, and folders ending in a slash.

    Tokenizers are left out: all datasets of the store share them, and they are small. Columns are derived after the
    commit, so that their folder stands for them.
    """
    keys = sorted(manifest["key"] for manifest in body["manifests"].values())
    folders = sorted(columns_folder(dataset, manifest["digest"]) for manifest in body["manifests"].values())
    return [*keys, *folders, job_folder(dataset, body["job"]) + "/"]
