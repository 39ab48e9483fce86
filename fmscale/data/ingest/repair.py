"""Documents that a dataset holds twice, or in both splits, as commits from before the ledger can.

In such commits the name and place of a document decided its split, and a folder that was ingested again was added
again. A repair masks the doubles; segments stay as they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from fmscale.data.ingest.content import U64, row_hashes
from fmscale.data.ingest.plan import HELDOUT, TRAIN
from fmscale.data.views.mask import Documents, make_mask, own_masked
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.kinds import open_kind
from fmscale.store.segments.records import RecordSegment, read_records
from fmscale.store.segments.tokens import TokenSegment, split_tokens

READ_BYTES = 16 << 20
READ_TOKENS = READ_BYTES // 4
"""Size of a read."""

Advance = Callable[[int], object]
"""Receives the number of documents of each segment that was read."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Documents of a dataset that no mask leaves out, in the order of commits."""

    documents: Documents
    split: NDArray[np.uint8]
    """0 for train, 1 for heldout."""
    source: U64
    """Hash of each document's source name."""
    content: U64
    """Hash of each document's tokens, or record; zeros if contents were not read."""
    old: NDArray[np.bool_]
    """True for documents of commits from before the ledger."""


@dataclass(frozen=True, kw_only=True)
class Doubles:
    """Documents that a dataset should not hold."""

    straddling: NDArray[np.intp]
    """Documents of train with a copy in heldout."""
    repeated: NDArray[np.intp]
    """Documents of an id that another commit, or the other split, has again."""
    again: NDArray[np.intp]
    """Documents of commits from before the ledger that a later commit has of the same file, at another place in it."""


def read_stock(dataset: Dataset, *, contents: bool, advance: Advance = lambda count: None) -> Stock:
    """Read the documents of all live commits; their tokens or records only for `contents`."""
    parts = [
        (documents, split, source, content, old)
        for split in (TRAIN, HELDOUT)
        for documents, source, content, old in _segments(dataset, split, contents, advance)
    ]
    parts.sort(key=lambda part: int(part[0].commit[0]))
    if not parts:
        nothing = np.empty(0, np.uint64)
        documents = Documents._make(np.empty(0, kind) for kind in ("u4", "u4", "u8", "u8", "u8", "V16"))
        return Stock(
            documents=documents, split=np.empty(0, np.uint8), source=nothing, content=nothing, old=np.empty(0, np.bool_)
        )
    return Stock(
        documents=Documents._make(map(np.concatenate, zip(*(part[0] for part in parts), strict=True))),
        split=np.concatenate([np.full(len(part[2]), part[1] == HELDOUT, np.uint8) for part in parts]),
        source=np.concatenate([part[2] for part in parts]),
        content=np.concatenate([part[3] for part in parts]),
        old=np.concatenate([np.full(len(part[2]), part[4]) for part in parts]),
    )


def find_doubles(stock: Stock) -> Doubles:
    """Doubles of a stock whose contents were read. Of copies the held-out ones stay, so that they measure what training
    does not see; of contents under one id that of the newest commit stays.
    """
    commit, left = stock.documents.commit, np.arange(len(stock.content))
    words = np.ascontiguousarray(stock.documents.id).view(np.uint64).reshape(-1, 2)
    same = np.column_stack((words, stock.content)).view("V24")[:, 0]
    copies = _earlier(same, commit + np.where(stock.split == 1, np.uint32(2**31), np.uint32(0)))
    left = np.setdiff1d(left, copies)
    others = left[_earlier(stock.documents.id[left], commit[left])]
    left = np.setdiff1d(left, others)
    held = stock.split[left] == 1
    straddling = left[~held & np.isin(stock.content[left], stock.content[left[held]])]
    left = np.setdiff1d(left, straddling)
    pairs = np.column_stack((stock.source[left], stock.content[left])).view("V16")[:, 0]
    again = left[_earlier(pairs, commit[left])]
    repeated = np.concatenate((copies, others))
    return Doubles(straddling=straddling, repeated=repeated, again=again[stock.old[again]])


def repeated_ids(stock: Stock) -> Documents:
    """Documents whose id a later commit, or the other split, has again."""
    key = stock.documents.commit * np.uint32(2) + stock.split
    return stock.documents.take(_earlier(stock.documents.id, key))


def mask_doubles(dataset: Dataset, stock: Stock, doubles: Doubles) -> dict[str, str]:
    """Mask the doubles for all new views, in one entry of the dataset's log. Returns the masks by split."""
    out = np.concatenate((doubles.straddling, doubles.repeated, doubles.again))
    masks = {
        split: make_mask(dataset, stock.documents.take(chosen), split=split)
        for number, split in enumerate((TRAIN, HELDOUT))
        if len(chosen := out[stock.split[out] == number])
    }
    if masks:
        dataset.append_masks(masks, "documents held twice, or in both splits")
    return masks


def _earlier(keys: NDArray[np.void], commits: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Indexes of the items whose key an item of a later commit has, too."""
    _, inverse = np.unique(keys, return_inverse=True)
    newest = np.zeros(inverse.max(initial=-1) + 1, dtype=commits.dtype)
    np.maximum.at(newest, inverse, commits)
    return np.flatnonzero(commits < newest[inverse])


def _segments(
    dataset: Dataset, split: str, contents: bool, advance: Advance
) -> Iterator[tuple[Documents, U64, U64, bool]]:
    """The documents of each segment of a split that no mask leaves out, their sources and contents."""
    masked = own_masked(dataset, split)
    for commit in dataset.commits():
        for index, row in enumerate(commit.manifests[split].rows() if split in commit.manifests else ()):
            segment = open_kind(dataset.backend, commit.kind, row.prefix, row.seal)
            table = read_document_table(dataset.backend, segment)
            stops = np.cumsum(table.column("tokens").to_numpy()).astype(np.uint64)
            starts = np.append(np.uint64(0), stops[:-1])
            first = np.uint64(row.first_token if commit.kind == "tokens" else row.first_document)
            ids = np.frombuffer(table.column("id").combine_chunks().buffers()[1], dtype="V16", count=len(table))
            names = table.column("source").combine_chunks()
            sources = [xxhash.xxh3_64_intdigest(name.encode()) for name in names.dictionary.to_pylist()]
            content = _contents(dataset, segment, stops) if contents else np.zeros(len(stops), np.uint64)
            kept = np.flatnonzero(~np.isin(starts + first, masked.get(commit.number, ())))
            commits, indexes = (np.full(len(stops), number, np.uint32) for number in (commit.number, index))
            documents = Documents(commits, indexes, starts, stops, starts + first, ids)
            advance(len(stops))
            old = "ledger" not in commit.body["extra"].get("ingest", {})
            if len(kept):
                yield documents.take(kept), np.array(sources, np.uint64)[names.indices][kept], content[kept], old


def _contents(dataset: Dataset, segment: TokenSegment | RecordSegment, stops: U64) -> U64:
    """The hash of each document's tokens, or of each record."""
    if isinstance(segment, RecordSegment):
        size = sum(file.bytes for file in segment.files) // segment.documents + 1
        step = max(1, READ_BYTES // size)
        parts = range(0, segment.documents, step)
        tables = (read_records(dataset.backend, segment, n, min(step, segment.documents - n)) for n in parts)
        return np.concatenate([row_hashes(batch) for table in tables for batch in table.combine_chunks().to_batches()])
    found = np.empty(len(stops), np.uint64)
    for first, read in split_tokens(dataset.backend, segment, stops, READ_TOKENS):
        found[first : first + len(read)] = [xxhash.xxh3_64_intdigest(tokens.data) for tokens in read]
    return found
