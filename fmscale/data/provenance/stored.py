"""The stored documents or records of a source, and the samples that they make, from the plain verified readers."""

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa

from fmscale.data.provenance.delivery import tokens_digest
from fmscale.data.provenance.digests import remade_digest
from fmscale.data.samples.protocol import Record, Spec
from fmscale.data.samples.specs import open_spec
from fmscale.data.views.mask import load_mask
from fmscale.errors import DataError
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.kinds import open_kind
from fmscale.store.segments.records import RecordSegment, read_records
from fmscale.store.segments.tokens import TokenSegment, read_tokens


@dataclass(frozen=True, kw_only=True)
class AuditSource:
    """A source of the run, as stored."""

    dataset: Dataset
    commits: tuple[int, ...]
    """Commits that the run used, in order."""
    split: str
    """Split that the run used."""
    weights: tuple[tuple[int, float], ...]
    """(first sample, weight relative to the other sources) of each stage of the run; the first stage begins at 0."""
    masks: tuple[str, ...] = ()
    """Masks whose documents or records the run left out."""
    banned: tuple[tuple[int, int], ...] = ()
    """Ranges [first, stop) of rows, sorted and disjoint, in the run's bans, quarantines and exclusions; each row has a
    substitute of the same epoch, or its sample no content.
    """
    spec: str = ""
    """JSON of the spec that makes samples of rows; "" for rows of tokens as they are stored."""
    seed: int = 0
    """Seed of the source, from which samples of a spec draw."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The documents, or records, of one source, one after another."""

    source: AuditSource
    ids: np.ndarray
    """uint64 [documents, 2]."""
    start: np.ndarray
    """Place of each document: tokens of the source before it."""
    stop: np.ndarray
    segment: np.ndarray
    """Index of each document's segment."""
    segments: list[tuple[TokenSegment | RecordSegment, int]]
    """Segments and their places."""
    masked: np.ndarray
    """int64 [n, 2]: begin and end of masked documents, in any order."""
    spec: Spec | None


def open_stored(source: AuditSource) -> Stored:
    """The documents or records of a source."""
    backend = source.dataset.backend
    ids, stops, owners = [], [], []
    masks = [load_mask(backend, source.dataset.name, digest).documents for digest in source.masks]
    masked = [np.empty((0, 2), dtype=np.int64)]
    segments: list[tuple[TokenSegment | RecordSegment, int]] = []
    at = 0
    for number in source.commits:
        commit = source.dataset.commit(number)
        manifest = commit.manifests.get(source.split)
        if manifest is None:
            continue
        for documents in masks:
            first = documents.position[documents.commit == number].astype(np.int64)
            count = (documents.stop - documents.start)[documents.commit == number].astype(np.int64)
            masked.append(at + np.stack([first, first + count], axis=1))
        for index in range(manifest.segments):
            handle = open_kind(backend, commit.kind, *manifest.segment(index))
            table = read_document_table(backend, handle)
            lengths = table["tokens"].to_numpy()
            ids.append(words_of(table["id"].combine_chunks()))
            stops.append(at + np.cumsum(lengths))
            owners.append(np.full(len(lengths), len(segments)))
            segments.append((handle, at))
            at += int(lengths.sum())
    stop = np.concatenate(stops)
    return Stored(
        source=source,
        ids=np.concatenate(ids),
        start=np.append(0, stop[:-1]),
        stop=stop,
        segment=np.concatenate(owners),
        segments=segments,
        masked=np.concatenate(masked),
        spec=open_spec(backend, source.spec) if source.spec else None,
    )


def words_of(ids: pa.Array) -> np.ndarray:
    """Ids as uint64 [n, 2]."""
    if not len(ids):
        return np.empty((0, 2), dtype=np.uint64)
    return np.frombuffer(ids.buffers()[1], dtype="<u8").reshape(-1, 2)[ids.offset :][: len(ids)]


def find(stored: Stored, ids: np.ndarray) -> np.ndarray:
    """Index of each id among the source's documents. Raises DataError for an unknown id."""
    pair = [("a", "<u8"), ("b", "<u8")]
    known, delivered = (np.ascontiguousarray(words).view(pair).reshape(-1) for words in (stored.ids, ids))
    by_id = np.argsort(known, kind="stable")
    index = by_id[np.minimum(np.searchsorted(known, delivered, sorter=by_id), len(known) - 1)]
    strange = np.flatnonzero(known[index] != delivered)
    if len(strange):
        raise DataError(
            "delivered documents that are not in the dataset",
            found=f"{len(strange)}, first {ids[strange[0]].tobytes().hex()}",
            remedy="Audit against the store, datasets and commits that the run read.",
        )
    return index


def stored_digest(stored: Stored, k: int, document: np.ndarray, place: np.ndarray, tokens: np.ndarray) -> bytes:
    """The digest of sample k made of its pieces, which are document, place and tokens. Raises the errors of its spec,
    and DataError for two records.
    """
    backend, segment = stored.source.dataset.backend, stored.segment[document]
    record: Record = {}
    content: list[np.ndarray] = []
    at = 0
    while at < len(document):
        # Neighbouring documents of a segment are one run of tokens: one read for all of them.
        end = at + 1
        while end < len(document) and segment[end] == segment[at] and place[end] == place[end - 1] + tokens[end - 1]:
            end += 1
        handle, start = stored.segments[segment[at]]
        first, count = int(place[at]) - start, int(tokens[at:end].sum())
        if isinstance(handle, TokenSegment):
            content.append(read_tokens(backend, handle, first, count))
        elif stored.spec is not None:
            if len(document) > 1:
                raise DataError("a sample is made of one record", found=len(document), remedy="Look at its delivery.")
            names = [name for name in stored.spec.columns if name in handle.schema.names]
            [record] = read_records(backend, handle, first, count).select(names).to_pylist()
        at = end
    if stored.spec is None:
        return tokens_digest(np.concatenate(content))
    if content:
        # Joined by document: a document that was delivered in two pieces is no sample of the stored data.
        joined = groupby(zip(document.tolist(), tokens.tolist(), strict=True), key=itemgetter(0))
        record = {"tokens": np.concatenate(content), "pieces": tuple(sum(n for _, n in run) for _, run in joined)}
    return remade_digest(stored.spec, record, seed=stored.source.seed, k=k, rows=bool(content))
