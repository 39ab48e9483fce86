"""Datasets: named logs of commits; a commit makes a job's sealed segments visible at once.

datasets/NAME/log/...                  commit, mask, retire and pin entries
datasets/NAME/masks/DIGEST.arrow       documents that views leave out
datasets/NAME/manifests/DIGEST.arrow   the segments of one split of one commit
datasets/NAME/segments/JOB/...         segments, sealed one by one, visible with their commit
tokenizers/DIGEST.json                 tokenizers, shared by all datasets
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Lock
from typing import Any

import pyarrow as pa

from fmscale.errors import Conflict, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets import commit as commits
from fmscale.store.datasets.commit import Commit, decode_commit
from fmscale.store.datasets.manifest import Manifest
from fmscale.store.datasets.manifest_writer import encode_manifest
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.digest import data_digest
from fmscale.store.log.entry import LogEntry
from fmscale.store.log.log import DATASET_KINDS, Log
from fmscale.store.log.retirement import RetirementState, append_anew, replay
from fmscale.store.segments.seal import FORMAT_VERSION, SealInfo, job_folder, sealed, segment_prefix

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of datasets; they are folders on every kind of store."""

SPLIT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""Names of splits."""

SEAL_READS = 32
"""Seals read at once before a commit: 10^4 of them in 8 s at 25 ms each."""

AGREED = ("kind", "tokenizer", "dtype", "bos", "eos")
"""Fields in which all live commits of a dataset agree."""

Segments = Mapping[str, Sequence[tuple[int, SealInfo]]]
"""Sealed segments of a job by split: (work unit, seal)."""


class Dataset:
    """A dataset of a store; it exists once it has a commit. Safe across threads."""

    def __init__(self, backend: Backend, name: str) -> None:
        self.backend = backend
        self.name = name
        self.log = Log(backend, f"datasets/{name}", DATASET_KINDS)
        self._state = RetirementState()
        self._lock = Lock()

    def commits(self) -> list[Commit]:
        """Live commits in order, without retired commits."""
        with self._lock:
            state = replay(self.log, self._state)
            return [decode_commit(self.backend, entry) for _, entry in sorted(state.live.items())]

    def named(self, numbers: Iterable[int]) -> list[Commit]:
        """The live commits with these numbers. Reads the log only for a number that this object does not know."""
        with self._lock:
            entries = [self._state.live.get(number) for number in numbers]
        live = [decode_commit(self.backend, entry) for entry in entries if entry is not None]
        return live if len(live) == len(entries) else [self.commit(number) for number in numbers]

    def commit(self, number: int) -> Commit:
        """The live commit with this number. Raises DataError for a retired or unknown commit."""
        live = {commit.number: commit for commit in self.commits()}
        if number not in live:
            gone = "was retired" if any(number in r.body["commits"] for r in self._state.retires) else "is not there"
            raise DataError(
                f"Commit {number} of dataset {self.name} {gone}", found=number, remedy=f"Live commits: {sorted(live)}."
            )
        return live[number]

    def unnamed(self) -> list[str]:
        """Manifests that no commit names, neither a live nor a retired commit; one listing."""
        with self._lock:
            state = replay(self.log, self._state)
            named = {m["key"] for entry in state.live.values() for m in entry.body["manifests"].values()}
            keys = [f"{self.log.prefix}/manifests/{n}" for n in self.backend.list_names(f"{self.log.prefix}/manifests")]
            return [key for key in keys if key not in named and not state.dead.touches(key)]

    def check_open(self, job: str) -> None:
        """Raise Conflict if an earlier commit of this job was retired: garbage collection may delete its
        segments at any time, so the job's digest cannot be used again. Call it before the job's work, too.
        """
        with self._lock:
            self._check_alive(replay(self.log, self._state), [job_folder(self.name, job) + "/"])

    def append_commit(
        self,
        *,
        job: str,
        segments: Segments,
        tokenizer: str | None,
        dtype: str,
        bos: int | None = None,
        eos: int | None = None,
        kind: str = "tokens",
        extra: Mapping[str, Any] | None = None,
        masks: Mapping[str, str] | None = None,
        recheck: Callable[[Sequence[Commit]], object] = lambda live: None,
    ) -> Commit:
        """Make a job's segments visible: manifests first, then one log entry (promise P3).

        `segments` are all segments of the job, by split, in the order of their work units; splits without
        segments are left out. `tokenizer` is the digest of a stored tokenizer, `extra` the job's notes (JSON).
        `masks` are the digests, by split, of stored masks of documents that this commit replaces. `recheck` gets the
        live commits right before the commit is written, and may raise an error instead.
        If the job has a live commit with the same segments, this returns that commit and writes nothing.

        Raises DataError if the commit differs from the dataset's live commits in kind, tokenizer, type, BOS or
        EOS, or if segments are missing, incomplete or of another type; Conflict if the job's earlier commit was
        retired or has other segments; and the store's errors. Nothing is visible after an error.
        """
        self._check_splits(segments)
        given = {"kind": kind, "tokenizer": tokenizer, "dtype": dtype, "bos": bos, "eos": eos}
        with self._lock:
            state = replay(self.log, self._state)
        self._check_agreed(state, given)
        self._check_alive(state, [job_folder(self.name, job) + "/"])
        if tokenizer is not None:
            load_tokenizer(self.backend, tokenizer)
        self._check_sealed(job, segments)
        manifests = {
            split: self._store_manifest(rows, kind, split, dtype, job) for split, rows in segments.items() if rows
        }
        body = {
            "format_version": commits.MASKING_VERSION if masks else FORMAT_VERSION,
            **given,
            "job": job,
            "manifests": manifests,
            "extra": dict(extra or {}),
            **({"masks": dict(masks)} if masks else {}),
        }
        return decode_commit(self.backend, self._append(body, recheck))

    def masks(self, split: str, last: int | None = None) -> tuple[str, ...]:
        """Digests of the masks that the dataset's own entries name for a split, of those up to number `last`."""
        with self._lock:
            state = self._state if self._state.head else replay(self.log, self._state)
        entries = [*state.live.values(), *state.masks]
        named = [entry.body.get("masks", {}).get(split) for entry in entries if last is None or entry.number <= last]
        return tuple(sorted({digest for digest in named if digest}))

    def append_masks(self, masks: Mapping[str, str], reason: str) -> LogEntry:
        """Take the documents of stored masks (digests by split) out of the dataset, for all views from now on."""
        return self.log.append("mask", {"format_version": 1, "masks": dict(masks), "reason": reason})

    def _append(self, body: dict[str, Any], recheck: Callable[[Sequence[Commit]], object]) -> LogEntry:
        """The entry with this body, or the entry that another process appended for the same job meanwhile."""
        state = replay(self.log)

        def body_now() -> dict[str, Any]:
            self._check_agreed(state, body)
            self._check_alive(state, commits.references(self.name, body))
            same = next((entry for entry in state.live.values() if entry.body["job"] == body["job"]), None)
            if same is not None and same.body["manifests"] != body["manifests"]:
                raise Conflict(
                    f"The job is committed already (commit {same.number} of {self.name}) with other segments",
                    found=body["job"],
                    remedy="Its inputs or its software changed since: run it as a new job.",
                )
            if same is not None:
                raise _Committed(same)
            recheck([decode_commit(self.backend, entry) for _, entry in sorted(state.live.items())])
            return body

        try:
            return append_anew(self.log, "commit", body_now, state, lease=0)
        except _Committed as signal:
            return signal.entry

    def _check_agreed(self, state: RetirementState, given: Mapping[str, Any]) -> None:
        for number, entry in sorted(state.live.items()):
            for name in AGREED:
                if entry.body[name] != given[name]:
                    raise DataError(
                        f"This {name} is not the one of dataset {self.name}, whose commit {number} has "
                        f"{entry.body[name]!r}",
                        found=given[name],
                        remedy=f"Ingest with the dataset's own {name}, or into a dataset of another name.",
                    )

    def _check_alive(self, state: RetirementState, names: Iterable[str]) -> None:
        dead = [name for name in names if state.dead.touches(name)]
        if dead:
            raise Conflict(
                f"An earlier commit of this job to {self.name} was retired, and its objects may be deleted",
                found=dead,
                remedy="Run it as a new job (its digest must differ), which writes under new names.",
            )

    def _check_splits(self, segments: Segments) -> None:
        bad = [split for split in segments if not SPLIT.fullmatch(split)]
        if bad:
            raise DataError(
                "A split has a name that cannot be used",
                found=bad[0],
                remedy="Use up to 32 lower-case letters, digits, - and _.",
            )
        if not any(segments.values()):
            raise DataError(
                f"There is nothing to commit to dataset {self.name}: the job made no segment",
                remedy="Check that its inputs hold documents.",
            )

    def _check_sealed(self, job: str, segments: Segments) -> None:
        """Raise DataError unless every segment is on the store with the seal that the manifest will record."""

        def check(item: tuple[str, int, SealInfo]) -> None:
            split, unit, seal = item
            prefix = segment_prefix(self.name, job, unit, split)
            found = sealed(self.backend, prefix)
            if found != seal:
                raise DataError(
                    f"The segment {prefix} is not sealed with the digest {seal.digest}",
                    found=found and found.digest,
                    remedy="Run the job again: it makes the missing segments and then commits.",
                )

        items = [(split, unit, seal) for split, rows in segments.items() for unit, seal in rows]
        with ThreadPoolExecutor(SEAL_READS) as pool:
            list(pool.map(check, items))

    def _store_manifest(
        self, rows: Sequence[tuple[int, SealInfo]], kind: str, split: str, dtype: str, job: str
    ) -> dict[str, Any]:
        """Store the manifest of one split; returns its record in the commit."""
        folder = job_folder(self.name, job)
        digest, totals, data = encode_manifest(rows, kind=kind, split=split, dtype=dtype, job=job, folder=folder)
        key = f"datasets/{self.name}/manifests/{digest}.arrow"
        if not store_once(self.backend, key, data):
            data = self.backend.get(key)
            Manifest(pa.py_buffer(data), digest, key)
        stored = {"bytes": len(data), "digest": data_digest(data)}
        return {"key": key, "digest": digest, "object": stored, **asdict(totals)}


class _Committed(Exception):
    """The job has a live commit already."""

    def __init__(self, entry: LogEntry) -> None:
        self.entry = entry


def create_or_open(backend: Backend, name: str) -> Dataset:
    """The dataset of this name, to be written; if the store lacks it, its first commit makes it. Raises DataError for
    a name that cannot be used, and CorruptData if its log lacks an entry.
    """
    if not NAME.fullmatch(name):
        raise DataError(
            "A dataset cannot have this name",
            found=name,
            remedy="Use up to 100 letters, digits, ., - and _, starting with a letter or digit.",
        )
    dataset = Dataset(backend, name)
    dataset.log.check()
    return dataset


def open_dataset(backend: Backend, name: str) -> Dataset:
    """The dataset of this name. Raises DataError, with the nearest names, for an unknown dataset."""
    dataset = Dataset(backend, name)
    if NAME.fullmatch(name):
        dataset.commits()  # reads the log, so that `begun` seldom needs a request
        if dataset.log.begun():
            return dataset
    names = list_datasets(backend)
    near = difflib.get_close_matches(name, names, cutoff=0.5) or names[:10]
    remedy = f"Did you mean {' or '.join(near)}?" if near else "It has no datasets yet: `fmscale ingest` makes one."
    raise DataError(f"The store {backend.url} has no dataset of this name", found=name, remedy=remedy)


def list_datasets(backend: Backend) -> list[str]:
    """Names of the datasets with a commit."""
    names = [name.rstrip("/") for name in backend.list_names("datasets")]
    return [name for name in names if Dataset(backend, name).log.begun()]
