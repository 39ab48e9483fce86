"""The part of a corpus that trains a tokenizer: a function of the listing, bounded in bytes.

The corpus is cut into parts of about 1 MiB. (A file of text and a compressed file are one part each, of which only
the beginning is taken.) Parts are taken in the order of a hash of their names until the sample is full: a sample of
many small sources resembles the whole, and a second run gives the same sample.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing

import xxhash

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.formats import RawDocument
from fmscale.data.ingest.plan import IngestPlan, Work, document_id, group, is_heldout

PART_BYTES = 1 << 20
"""Text taken from a part of the corpus."""

LEAST_BYTES = 8 << 20
BYTES_PER_TOKEN = 1 << 10
"""Bytes of the sample for each entry of the vocabulary. The sample has 8 MiB at least: training then takes 8 s on two
cores (28 MiB: 45 s).
"""


def sample(plan: IngestPlan, roots: Sequence[str], vocab_size: int) -> Iterator[str]:
    """Texts to train `vocab_size` entries, without held-out documents and damaged input."""
    parts = [work for unit in group(plan.files, PART_BYTES) for work in unit]
    left = max(LEAST_BYTES, vocab_size * BYTES_PER_TOKEN)
    with closing(Reading(roots, plan.options.field, plan.options.max_document)) as reading:
        for work in sorted(parts, key=_place):
            size = 0
            for text in _texts(work, plan, reading):
                part = text[: PART_BYTES - size]
                yield part
                size += len(part.encode())
                if size >= PART_BYTES:
                    break
            left -= size
            if left <= 0:
                return


def _place(work: Work) -> tuple[int, str, int]:
    name = f"{work.file.source}\0{work.index}"
    return xxhash.xxh3_64_intdigest(name.encode()), work.file.source, work.index


def _texts(work: Work, plan: IngestPlan, reading: Reading) -> Iterator[str]:
    for item in reading.documents(work):
        if not isinstance(item, RawDocument) or not item.data:
            continue
        if not is_heldout(document_id(work.file.source, item.start), plan.options.heldout):
            yield item.data[: 4 * PART_BYTES].decode(errors="ignore")
