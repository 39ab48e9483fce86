"""Masks: documents excluded from a dataset after ingest. A mask makes a new view and rewrites no data.

A mask is an object at datasets/NAME/masks/DIGEST.arrow: a sorted Arrow table with the token span of each masked
document in its segment; a record counts as a document of one token. The cost of using a mask grows with its size alone.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmscale.errors import CorruptData, DataError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.handle import read_document_table, read_rows
from fmscale.store.segments.kinds import open_kind
from fmscale.store.segments.seal import check_version, verified

FORMAT_VERSION = 1
"""Version of new masks; older versions can be read."""

SCHEMA = pa.schema(
    [
        ("commit", pa.uint32()),
        ("segment", pa.uint32()),
        ("start", pa.uint64()),
        ("stop", pa.uint64()),
        ("position", pa.uint64()),
        ("id", pa.binary(16)),
    ]
)
HEADER_KEY = b"fmscale"
SEGMENT_READS = 8
"""Segments searched for documents at the same time, to hide the latency of a remote store."""

Predicate = Callable[[pa.Table], NDArray[np.bool_]]
"""Picks documents of a segment from their table (`store.segments.handle.DOCUMENTS_SCHEMA`)."""


class Documents(NamedTuple):
    """Documents and the places of their tokens: arrays of equal length, sorted by commit, segment, start."""

    commit: NDArray[np.uint32]
    """Number of the commit."""
    segment: NDArray[np.uint32]
    """Index of the segment in the commit's manifest of the split."""
    start: NDArray[np.uint64]
    """First token in the segment."""
    stop: NDArray[np.uint64]
    """Token behind the document's last token."""
    position: NDArray[np.uint64]
    """First token, or record, counted over the whole split of the commit, so that a mask needs no manifest."""
    id: NDArray[np.void]
    """Stable document id, 16 bytes."""

    def take(self, which: NDArray[np.intp]) -> "Documents":
        """The documents at the indexes `which`, in that order."""
        return Documents._make(column[which] for column in self)


_NO_DOCUMENTS = Documents(*(np.empty(0, dtype=kind) for kind in ("u4", "u4", "u8", "u8", "u8", "V16")))


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Masked documents of one split of a dataset."""

    split: str
    """Split that the segments' indexes refer to."""
    documents: Documents


def document_id(text: str) -> bytes:
    """The 16 bytes of a document id given as 32 hex digits. Raises DataError for anything else."""
    try:
        data = bytes.fromhex(text.strip())
    except ValueError:
        data = b""
    if len(data) != 16:
        raise DataError(
            "a document id has 32 hexadecimal digits",
            found=text,
            remedy="`fmscale dataset trace` shows the ids of documents.",
        )
    return data


def of_sources(chosen: Callable[[str], bool]) -> Predicate:
    """A predicate that picks the documents of the sources that `chosen` takes."""

    def where(table: pa.Table) -> NDArray[np.bool_]:
        column = table.column("source").combine_chunks()
        names = np.array([chosen(name) for name in column.dictionary.to_pylist()], dtype=np.bool_)
        picked: NDArray[np.bool_] = names[column.indices.to_numpy()]
        return picked

    return where


def find_documents(
    dataset: Dataset,
    *,
    split: str = "train",
    commits: Sequence[int] | None = None,
    ids: Iterable[bytes] | None = None,
    where: Predicate | None = None,
    partial: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> Documents:
    """The documents or records with these ids (16 bytes each), or those that `where` picks, in the live commits or
    `commits`.

    Reads the document arrays of every segment, and calls `advance` after each segment. Raises DataError if no segment
    has an id, unless `partial`, and the errors of the store.
    """
    unique_ids = None if ids is None else np.unique(np.frombuffer(b"".join(ids), dtype="V16"))

    def search(place: tuple[Commit, int]) -> Documents:
        commit, index = place
        row = commit.manifests[split].row(index)
        segment = open_kind(dataset.backend, commit.kind, row.prefix, row.seal)
        words = read_rows(dataset.backend, segment, "document_ids", 0, segment.documents)
        if commit.kind == "records":
            first, ends = row.first_document, np.arange(1, segment.documents + 1, dtype=np.uint64)
        else:
            first, ends = row.first_token, read_rows(dataset.backend, segment, "document_ends", 0, segment.documents)
        names = np.ascontiguousarray(words, dtype="<u8").view("V16")[:, 0]
        if unique_ids is not None:
            selection = np.isin(names, unique_ids)
        elif where is not None:
            selection = np.asarray(where(read_document_table(dataset.backend, segment)), dtype=np.bool_)
        else:
            selection = np.ones(len(names), dtype=np.bool_)
        starts = np.concatenate((np.zeros(1, dtype=np.uint64), ends[:-1]))[: len(ends)]
        count = int(selection.sum())
        advance()
        return Documents(
            np.full(count, commit.number, dtype=np.uint32),
            np.full(count, index, dtype=np.uint32),
            starts[selection],
            ends[selection],
            starts[selection] + np.uint64(first),
            names[selection],
        )

    commit_list = dataset.commits() if commits is None else [dataset.commit(number) for number in commits]
    segments = [
        (commit, index)
        for commit in commit_list
        if split in commit.manifests
        for index in range(commit.manifests[split].segments)
    ]
    with ThreadPoolExecutor(SEGMENT_READS) as pool:
        parts = [_NO_DOCUMENTS, *pool.map(search, segments)]
    documents = Documents._make(map(np.concatenate, zip(*parts, strict=True)))
    if unique_ids is not None and not partial:
        missing = unique_ids[~np.isin(unique_ids, documents.id)]
        if missing.size:
            raise DataError(
                f"{missing.size} document ids are not in the split {split} of dataset {dataset.name}",
                found=[name.tobytes().hex() for name in missing[:3]],
                remedy="Check the split; `fmscale dataset trace` shows the ids of what was trained on.",
            )
    return documents


def make_mask(dataset: Dataset, documents: Documents, *, split: str = "train") -> str:
    """Store a mask of these documents and return its digest. The same documents give the same mask.

    Raises DataError without documents.
    """
    if not len(documents.commit):
        raise DataError("no document is to be masked", remedy="Check the ids, or what the documents are picked by.")
    order = np.lexsort((documents.start, documents.segment, documents.commit))
    columns = documents.take(order)
    header = canonical_json({"format_version": FORMAT_VERSION, "dataset": dataset.name, "split": split})
    arrays = [pa.array(column) for column in columns[:5]]
    arrays.append(pa.Array.from_buffers(pa.binary(16), len(order), [None, pa.py_buffer(columns.id.tobytes())]))
    schema = SCHEMA.with_metadata({HEADER_KEY: header})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    data = sink.getvalue().to_pybytes()
    digest = metadata_digest(data)
    store_once(dataset.backend, mask_key(dataset.name, digest), data)
    return digest


def own_masked(dataset: Dataset, split: str) -> dict[int, NDArray[np.uint64]]:
    """Positions, by live commit, of the documents or records that the dataset's own masks leave out of a split."""
    masks = [load_mask(dataset.backend, dataset.name, digest).documents for digest in dataset.masks(split)]
    live = [commit.number for commit in dataset.commits()] if masks else []
    return {n: np.unique(np.concatenate([mask.position[mask.commit == n] for mask in masks])) for n in live}


def load_mask(backend: Backend, dataset: str, digest: str) -> Mask:
    """The mask with this digest. Raises ObjectNotFound with digests that exist, CorruptData or FormatError."""
    key = mask_key(dataset, digest)
    try:
        data = backend.get(key)
    except ObjectNotFound as error:
        names = [name.removesuffix(".arrow") for name in backend.list_names(f"datasets/{dataset}/masks")]
        have = difflib.get_close_matches(digest, names, cutoff=0.5) or names[:3]
        raise ObjectNotFound(
            f"Dataset {dataset} has no such mask",
            found=digest,
            remedy=f"It has {', '.join(have)}." if have else "It has none: `fmscale dataset mask` makes one.",
        ) from error
    verified(data, digest, f"The mask {key}", "Restore the object, or make the mask again from the same documents.")
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        header: dict[str, Any] = json.loads(table.schema.metadata[HEADER_KEY])
        check_version(header, f"The mask {key}", FORMAT_VERSION)
        table = table.select(SCHEMA.names).cast(SCHEMA)
        commit, segment, start, stop, position = (table.column(name).to_numpy() for name in SCHEMA.names[:5])
        ids = np.frombuffer(table.column("id").combine_chunks().buffers()[1], dtype="V16", count=len(table))
        return Mask(split=str(header["split"]), documents=Documents(commit, segment, start, stop, position, ids))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(
            f"{key} is no mask", found=repr(error), remedy="Make the mask again from the same documents."
        ) from error


def mask_key(dataset: str, digest: str) -> str:
    """Key of a mask in the store."""
    return f"datasets/{dataset}/masks/{digest}.arrow"
