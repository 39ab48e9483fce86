"""Checks every byte that a dataset's commits reference, and names damaged, truncated and missing objects.

The check follows the chain of digests: log entry, manifest, seal, checksums, chunks. Behind a damaged link it
still checks all bytes that another link can verify. Every byte is read once. A derived column has a chain of its own,
from the digest at the end of its last object.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.errors import CorruptData, FormatError
from fmscale.store.backends.protocol import Backend, find
from fmscale.store.datasets.columns import INDEX, Column, column_keys, open_column
from fmscale.store.datasets.commit import Commit, check_manifest
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.datasets.manifest import Manifest, SegmentRow
from fmscale.store.datasets.object_check import Advance, Expected, ObjectProblem, check_object, chunks_of
from fmscale.store.datasets.tokenizers import tokenizer_key
from fmscale.store.digest import MetadataDigest, data_digest, metadata_digest
from fmscale.store.segments.array import ShardInfo
from fmscale.store.segments.handle import decode_arrays
from fmscale.store.segments.records import ARRAYS as RECORD_ARRAYS
from fmscale.store.segments.records import RECORD_CHUNK_BYTES, file_chunks
from fmscale.store.segments.records_version_1 import COLUMNS as BATCH_COLUMNS
from fmscale.store.segments.seal import decode_seal, job_folder, seal_info
from fmscale.store.segments.tokens import ARRAYS as TOKEN_ARRAYS

logger = logging.getLogger(__name__)

READERS = 8
"""Objects checked at once, each through one buffer of 4 MiB."""

SEGMENTS = 4
"""Segments checked at once, so that readers stay busy while a segment's last object is read."""

Submit = Callable[[Expected], "Future[list[ObjectProblem]]"]


def verify_dataset(
    backend: Backend, dataset: Dataset, commits: Iterable[int] | None = None, progress: Advance | None = None
) -> list[ObjectProblem]:
    """Check every object and every chunk of the given commits (by default of all live commits).

    Returns the problems in the order of commits and keys; an empty list if all is well. `progress` gets the
    bytes checked since its last call; `size_of` gives their total. Raises the store's error if it does not
    answer, and CorruptData if the log itself is damaged or lacks an entry: its commits are then unknown. Logs a line
    about manifests without a commit.
    """
    advance = progress or (lambda size: None)
    dataset.log.check()
    if unnamed := dataset.unnamed():
        logger.warning(
            "no commit of dataset %s names %s: a killed ingest leaves such a manifest, a running ingest has it, and a "
            "lost log entry would too",
            dataset.name,
            ", ".join(unnamed),
        )
    chosen = dataset.commits() if commits is None else [dataset.commit(number) for number in commits]
    problems: list[ObjectProblem] = []
    seen: set[str] = set()
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(SEGMENTS) as segments:
        for commit in chosen:

            def submit(expected: Expected, number: int = commit.number) -> "Future[list[ObjectProblem]]":
                return readers.submit(check_object, backend, expected, number, advance)

            if commit.tokenizer is not None and commit.tokenizer not in seen:
                seen.add(commit.tokenizer)
                _read_small(backend, commit.number, tokenizer_key(commit.tokenizer), commit.tokenizer, problems)
            if ledger := commit.body["extra"].get("ingest", {}).get("ledger"):
                key = f"{job_folder(dataset.name, commit.job)}/files.arrow"
                _read_small(backend, commit.number, key, ledger, problems)
            for digest in {mask for split in commit.manifests for mask in dataset.masks(split)} - seen:
                seen.add(digest)
                _read_small(backend, commit.number, f"datasets/{dataset.name}/masks/{digest}.arrow", digest, problems)
            for split in sorted(commit.manifests):
                rows = _rows(backend, dataset.name, commit, split, advance, problems)
                sizes: list[int] = []
                tasks = (partial(_check_segment, backend, commit, split, row, submit, advance, sizes) for row in rows)
                for result in _run(segments, tasks):
                    problems += result
                totals, key = commit.totals[split], commit.body["manifests"][split]["key"]
                if len(sizes) == totals.segments and sum(sizes) != totals.bytes:
                    what = f"damaged: the commit records {totals.bytes} bytes, and its seals {sum(sizes)}"
                    problems.append(ObjectProblem(commit=commit.number, key=key, what=what))
            for column in _columns(dataset, commit, problems):
                _check_column(commit, column, problems)
                parts = (column.expected(segment) for segment in range(column.index.num_rows))
                tasks = (partial(check_object, backend, part, commit.number, advance) for part in parts)
                for result in _run(readers, tasks):
                    problems += result
    return sorted(problems, key=lambda p: (p.commit, p.key, -1 if p.chunk is None else p.chunk, p.what))


def size_of(dataset: Dataset, commits: Iterable[Commit]) -> int:
    """Bytes that `verify_dataset` checks for these commits, tokenizers and the last objects of columns aside."""
    total = 0
    for commit in commits:
        total += sum(manifest["bytes"] + manifest["object"]["bytes"] for manifest in commit.body["manifests"].values())
        total += sum(column.bytes for column in _columns(dataset, commit, []))
    return total


def _columns(dataset: Dataset, commit: Commit, problems: list[ObjectProblem]) -> Iterator[Column]:
    """The complete columns of a commit; damage of their last objects goes to `problems`."""
    for manifest in commit.body["manifests"].values():
        for key in column_keys(dataset.backend, dataset.name, manifest["digest"]):
            try:
                column = open_column(dataset.backend, key)
            except (CorruptData, FormatError) as error:
                what = f"damaged: {error.found}" if isinstance(error, CorruptData) else f"unreadable: {error}"
                problems.append(ObjectProblem(commit=commit.number, key=f"{key}/{INDEX}", what=what))
                continue
            if column is not None:
                yield column


def _check_column(commit: Commit, column: Column, problems: list[ObjectProblem]) -> None:
    """Compare the sizes of a column with those of the split to which it belongs."""
    manifest = column.header["manifest"]
    (totals,) = [commit.totals[s] for s, m in commit.body["manifests"].items() if m["digest"] == manifest][:1]
    if (column.index.num_rows, column.records) != (totals.segments, totals.documents):
        what = f"damaged: {column.records} values of {column.index.num_rows} segments, the commit has {totals}"
        problems.append(ObjectProblem(commit=commit.number, key=f"{column.key}/{INDEX}", what=what))


def _run(pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], list[ObjectProblem]]]) -> Iterator[list[ObjectProblem]]:
    """Run tasks and yield their results; only some tasks wait at once, as there may be 10^6."""
    waiting: set[Future[list[ObjectProblem]]] = set()
    for task in tasks:
        waiting.add(pool.submit(task))
        if len(waiting) >= 4 * SEGMENTS:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    yield from (future.result() for future in waiting)


def _rows(
    backend: Backend, dataset: str, commit: Commit, split: str, advance: Advance, problems: list[ObjectProblem]
) -> Iterator[SegmentRow]:
    """The segments of one split, as far as its manifest can be read; the manifest's damage goes to `problems`."""
    recorded = commit.body["manifests"][split]
    key = recorded["key"]

    def problem(what: str) -> None:
        problems.append(ObjectProblem(commit=commit.number, key=key, what=what))

    if (data := find(backend, key)) is None:
        return problem("missing")
    advance(len(data))
    size = recorded["object"]["bytes"]
    if len(data) < size:
        problem(f"truncated: {len(data)} of {size} bytes")
    elif len(data) > size or data_digest(data) != recorded["object"]["digest"]:
        problem("damaged: its bytes do not match its digest")
    try:
        manifest = Manifest(pa.py_buffer(data), recorded["digest"], key)
        try:
            check_manifest(manifest, split, dataset, commit.body)
        except CorruptData as error:
            problem(f"damaged: it is not the one of its commit ({error.found})")
        yield from manifest.rows()
    except CorruptData as error:
        problem(f"damaged: segments cannot be read from it ({error.found})")


def _read_small(backend: Backend, commit: int, key: str, digest: str, problems: list[ObjectProblem]) -> bytes | None:
    """A small object, verified by its `metadata_digest`; None if it is bad, and its damage goes to `problems`."""
    data = find(backend, key)
    if data is not None and metadata_digest(data) == digest:
        return data
    what = "missing" if data is None else f"damaged: its {len(data)} bytes do not match its digest"
    problems.append(ObjectProblem(commit=commit, key=key, what=what))
    return None


def _check_segment(
    backend: Backend, of: Commit, split: str, row: SegmentRow, submit: Submit, advance: Advance, sizes: list[int]
) -> list[ObjectProblem]:
    """Problems of one segment: its seal, its checksums, its objects. Adds the seal's bytes to `sizes`."""
    problems: list[ObjectProblem] = []
    commit, key = of.number, f"{row.prefix}/seal.json"
    data = _read_small(backend, commit, key, row.seal, problems)
    if data is None:
        return problems
    advance(len(data))
    try:
        seal = decode_seal(data, key, of.kind)
        info = seal_info(data)
    except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
        return [ObjectProblem(commit=commit, key=key, what=f"unreadable: {error!r}")]
    sizes.append(info.bytes)
    recorded = (row.tokens, row.documents, split, of.dtype)
    if (info.tokens, info.documents, info.split, info.dtype) != recorded:
        what = "damaged: the commit records {} tokens and {} documents of {} {} for it".format(*recorded)
        problems.append(ObjectProblem(commit=commit, key=key, what=what))
    objects = dict(seal["objects"])
    entry = objects.pop("checksums.arrow")
    data = _read_small(backend, commit, f"{row.prefix}/checksums.arrow", entry["digest"], problems)
    sums = None
    if data is not None:
        advance(len(data))
        sums = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    expected = [
        Expected(key=f"{row.prefix}/{name}", bytes=entry["bytes"], digest=entry["digest"], hashed=MetadataDigest)
        for name, entry in objects.items()
    ]
    if seal["kind"] == "records" and seal["format_version"] == 1:
        expected += _record_batches(row, seal, sums)
    else:
        values = np.empty(0, np.uint32) if sums is None else sums.column(0).to_numpy()
        for file in [ShardInfo(**shard) for shard in seal["arrays"].get("records", {}).get("shards", ())]:
            expected.append(_expected(row, file, values[: file_chunks(file)], RECORD_CHUNK_BYTES))
            values = values[file_chunks(file) :]
        expected += _shards(row, seal, TOKEN_ARRAYS if seal["kind"] == "tokens" else RECORD_ARRAYS, values)
    for check in [submit(item) for item in expected]:
        problems += check.result()
    return problems


def _shards(row: SegmentRow, seal: dict[str, Any], names: Sequence[str], sums: np.ndarray) -> Iterator[Expected]:
    """The shards of a segment's arrays, with their chunks if the checksums are known."""
    for spec in decode_arrays(names, seal, sums).values():
        for number, shard in enumerate(spec.shards):
            first, last = spec.layout.shard_chunks(number)
            yield _expected(row, shard, spec.crc32c[first:last], spec.layout.chunk_bytes)


def _expected(row: SegmentRow, shard: ShardInfo, sums: np.ndarray, size: int) -> Expected:
    """An object with its chunks of `size` bytes, of which the last ends with the object."""
    chunks = chunks_of(sums.tolist(), size, shard.bytes)
    return Expected(key=f"{row.prefix}/{shard.key}", bytes=shard.bytes, digest=shard.digest, chunks=chunks)


def _record_batches(row: SegmentRow, seal: dict[str, Any], sums: pa.RecordBatch | None) -> Iterator[Expected]:
    """The files of a record segment of version 1, with their batches if the checksums are known."""
    columns = [[] if sums is None else sums.column(name).to_pylist() for name in BATCH_COLUMNS]
    batches = [(number, *place) for number, place in enumerate(zip(*columns, strict=True))]
    for number, shard in enumerate(seal["arrays"]["records"]["shards"]):
        chunks = [(i, offset, size, crc) for i, file, offset, size, crc in batches if file == number]
        yield Expected(key=f"{row.prefix}/{shard['key']}", bytes=shard["bytes"], digest=shard["digest"], chunks=chunks)
