"""The part of a corpus that a tokenizer is trained on: a function of the listing, bounded in bytes.

The corpus is cut into parts of about 1 MiB (a file of text is one part, as is a compressed file, of both
only the beginning is taken), the parts are put in the order of a hash of their names, and are taken until the
sample is full. So a sample of many small sources resembles the whole, and a second run gives the same one.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing

import xxhash

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.formats import RawDocument
from fmscale.data.ingest.plan import IngestPlan, Work, document_id, group, is_heldout

PART_BYTES = 1 << 20
"""Text taken from one part of the corpus."""

LEAST_BYTES = 8 << 20
BYTES_PER_TOKEN = 1 << 10
"""The sample has 1 KiB for each entry of the vocabulary and 8 MiB at least, on which training takes 8 s on
two cores (28 MiB: 45 s).
"""


def sample_bytes(vocab_size: int) -> int:
    """UTF-8 bytes of the sample for a vocabulary of this size."""
    return max(LEAST_BYTES, vocab_size * BYTES_PER_TOKEN)


def sample(plan: IngestPlan, roots: Sequence[str], limit: int) -> Iterator[str]:
    """Texts of up to about `limit` bytes; held-out documents and what cannot be read are left out."""
    parts = [work for unit in group(plan.files, PART_BYTES) for work in unit]
    left = limit
    with closing(Reading(roots, plan.options.field)) as reading:
        for work in sorted(parts, key=_place):
            taken = 0
            for text in _texts(work, plan, reading):
                piece = text[: PART_BYTES - taken]
                yield piece
                taken += len(piece.encode())
                if taken >= PART_BYTES:
                    break
            left -= taken
            if left <= 0:
                return


def _place(work: Work) -> tuple[int, str, int]:
    name = f"{work.file.source}\0{work.index}"
    return xxhash.xxh3_64_intdigest(name.encode()), work.file.source, work.index


def _texts(work: Work, plan: IngestPlan, reading: Reading) -> Iterator[str]:
    for found in reading.documents(work):
        if isinstance(found, RawDocument) and found.text:
            identity = document_id(work.file.source, found.start)
            if not is_heldout(identity, plan.options.heldout):
                yield found.text
