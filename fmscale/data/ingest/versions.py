"""New versions of files: the split of a file that is one document stays, and its earlier documents are masked."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing

import numpy as np

from fmscale.data.ingest.additions import Additions
from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.content import data_hash
from fmscale.data.ingest.formats import RawDocument
from fmscale.data.ingest.ledger import Ledger
from fmscale.data.ingest.plan import HELDOUT, TRAIN, Options, Work
from fmscale.data.tokenizers.protocol import Tokenizer, dtype_of
from fmscale.data.tokenizers.tokenizer import frame
from fmscale.data.views.mask import find_documents, make_mask, of_sources
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.segments.handle import Segment, read_document_table, read_rows
from fmscale.store.segments.kinds import open_kind


def pins_of(
    dataset: Dataset, found: Additions, ledger: Ledger, options: Options, tokenizer: Tokenizer | None
) -> dict[str, str]:
    """The dataset's pins, and those of new versions: a file that is one document keeps its split, unless a copy of its
    new content is in the dataset, because copies lie in one split.
    """
    pins = dict(ledger.pins)
    files = {file.source: file for file in found.listing.files}
    for source, (entry, content) in sorted(found.versions.items()):
        split = options.split(content)
        if split == entry.split or f"{content:016x}" in pins:
            continue
        twins = (e for e in ledger.files.values() if e.split == split and e.tally.sketch[:1] == [content])
        if any(twin.source not in found.versions for twin in twins):
            continue
        if tokenizer is not None:
            with closing(Reading([root.url for root in found.listing.roots], options.field)) as reading:
                items = reading.documents(Work(file=files[source], index=0, of=1))
                text = next(i.text for i in items if isinstance(i, RawDocument) and data_hash(i.data) == content)
            (ids,) = tokenizer.encode_batch([text])
            bos, eos = tokenizer.bos_id if options.bos else None, tokenizer.eos_id if options.eos else None
            if _holds(dataset, split, frame(ids, bos, eos).astype(dtype_of(tokenizer)), found.versions):
                continue
        pins[f"{content:016x}"] = entry.split
    return pins


def mask_earlier(dataset: Dataset, replaced: Collection[str], ledger: Ledger) -> Mapping[str, str]:
    """Masks, by split, of all documents of these sources in the commits that the ledger names."""
    masks: dict[str, str] = {}
    commits = sorted({number for source in replaced for number in ledger.files[source].commits})
    for split in (TRAIN, HELDOUT) if replaced else ():
        where = of_sources(set(replaced).__contains__)
        documents = find_documents(dataset, split=split, commits=commits, where=where)
        if len(documents.commit):
            masks[split] = make_mask(dataset, documents, split=split)
    return masks


def _holds(dataset: Dataset, split: str, tokens: np.ndarray, but: Collection[str]) -> bool:
    """True if the split has a document of these tokens, from another source than those in `but`."""
    for commit in dataset.commits():
        for row in commit.manifests[split].rows() if split in commit.manifests else ():
            segment = open_kind(dataset.backend, commit.kind, row.prefix, row.seal)
            if any(np.array_equal(tokens, other) for other in _as_long(dataset, segment, len(tokens), but)):
                return True
    return False


def _as_long(dataset: Dataset, segment: Segment, count: int, but: Collection[str]) -> Sequence[np.ndarray]:
    """The tokens of each document with `count` tokens."""
    table = read_document_table(dataset.backend, segment)
    sizes = table.column("tokens").to_numpy()
    places = np.flatnonzero((sizes == count) & ~of_sources(but.__contains__)(table))
    stops = np.cumsum(sizes)[places]
    return [read_rows(dataset.backend, segment, "tokens", int(stop) - count, count) for stop in stops]
