"""One work unit: read its pieces, tokenize, write and seal its segments, then its record."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.formats import Bad, RawDocument
from fmscale.data.ingest.plan import StoredPlan, Work, document_id, is_heldout, load_plan
from fmscale.data.ingest.record import BAD, SkippedInput, UnitRecord, record_name, records_folder
from fmscale.data.ingest.scratch import scratch_folder
from fmscale.data.tokenizers.protocol import Tokenizer, dtype_of
from fmscale.data.tokenizers.tokenizer import frame, from_json
from fmscale.errors import Conflict, StoreError
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.open import open_store
from fmscale.store.segments.seal import segment_prefix
from fmscale.store.segments.tokens_writer import TokenSegmentWriter

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenized at once: enough to amortize a call of the library, and tens of MB of its memory."""

BATCH_DOCUMENTS = 512
"""Documents that are tokenized at once, at most."""

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """What a writer needs to know to work on a job; sent as JSON to processes and ranks."""

    store: str
    """URL of the store."""
    dataset: str
    """Name of the dataset."""
    job: str
    """Digest of the job, whose plan is on the store."""
    roots: list[str]
    """Folders or URLs of the listing roots, which the plan refers to by number."""
    scratch: str
    """Folder of this machine for segments that are being written."""
    strict: bool
    """Whether damaged input is an error."""


Advance = Callable[[int], object]
"""Told the raw bytes of each piece that is done, and 0 after each batch: a sign of life."""


class UnitWriter:
    """Does units of one job; a process has one. Opens the store, plan and tokenizer once."""

    def __init__(self, assignment: UnitTask) -> None:
        self.assignment = assignment
        self._backend: Backend = open_store(assignment.store)
        stored = load_plan(self._backend, assignment.dataset, assignment.job)
        if stored is None:
            raise StoreError(
                "The plan of the job is not on the store",
                found=f"job {assignment.job} of {assignment.dataset}",
                remedy="Run ingest again; it stores the plan first.",
            )
        self._stored: StoredPlan = stored
        self._units = stored.plan.units()
        self._tokenizer: Tokenizer = from_json(
            load_tokenizer(self._backend, stored.tokenizer), f"tokenizer {stored.tokenizer}"
        )
        self._reading = Reading(assignment.roots, stored.plan.options.field)

    def close(self) -> None:
        """End what reads for it."""
        self._reading.close()

    def run(self, unit: int, advance: Advance) -> UnitRecord:
        """Do a unit; sealed and recorded when this returns. Raises what reading and storing raise."""
        skipped = SkippedInput()
        dtype = dtype_of(self._tokenizer)
        writers: dict[str, TokenSegmentWriter] = {}
        documents = text_bytes = 0
        with ExitStack() as stack:
            for batch in self._batches(self._units[unit], skipped, advance):
                ids = self._tokenizer.encode_batch([document.text for _, document in batch])
                for (source, document), tokens in zip(batch, ids, strict=True):
                    identity = document_id(source, document.start)
                    split = HELDOUT if is_heldout(identity, self._stored.plan.options.heldout) else TRAIN
                    if split not in writers:
                        writers[split] = stack.enter_context(
                            TokenSegmentWriter(Path(self.assignment.scratch), dtype=dtype, split=split)
                        )
                    framed = frame(tokens, self._stored.bos, self._stored.eos)
                    writers[split].add(framed, identity, source, document.start, document.stop)
                    text_bytes += len(document.text.encode())
                documents += len(batch)
            folder = (self.assignment.dataset, self.assignment.job, unit)
            seals = {
                split: writers[split].finish(self._backend, segment_prefix(*folder, split)) for split in sorted(writers)
            }
        record = UnitRecord(unit=unit, seals=seals, documents=documents, text_bytes=text_bytes, skipped=skipped)
        self._store(record)
        return record

    def describe(self, unit: int) -> str:
        """The unit and its files, for an error."""
        works = self._units[unit]
        first, last = works[0].file.source, works[-1].file.source
        return f"work unit {unit} ({first}{f' to {last}' if last != first else ''})"

    def _store(self, record: UnitRecord) -> None:
        key = f"{records_folder(self.assignment.dataset, self.assignment.job)}/{record_name(record.unit)}"
        if not store_once(self._backend, key, record.encode()):
            raise Conflict(
                f"{key} is there already and says something else of the same work unit",
                found=key,
                remedy="Its inputs or its software changed since: delete the record, or ingest anew.",
            )

    def _batches(
        self, works: list[Work], skipped: SkippedInput, advance: Advance
    ) -> Iterator[list[tuple[str, RawDocument]]]:
        """Documents of the unit in order with their source names."""
        batch: list[tuple[str, RawDocument]] = []
        size = 0
        for work in works:
            for document in self._documents(work, skipped):
                batch.append((work.file.source, document))
                size += len(document.text)
                if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
                    yield batch
                    advance(0)
                    batch, size = [], 0
            advance(work.bytes)
        if batch:
            yield batch

    def _documents(self, work: Work, skipped: SkippedInput) -> Iterator[RawDocument]:
        """Documents of a piece; what gives none is counted, or an error with `strict`."""
        for found in self._reading.documents(work):
            if isinstance(found, RawDocument) and found.text:
                yield found
                continue
            reason, where = (found.reason, found.where) if isinstance(found, Bad) else ("empty", "")
            if isinstance(found, RawDocument) and work.file.format != "text":
                where = f"at {found.start}"
            skipped.add(reason, f"{work.file.source}: {where}" if where else work.file.source)
            if self.assignment.strict and reason in BAD:
                skipped.refuse_bad()


@contextmanager
def open_writer(assignment: UnitTask) -> Iterator[UnitWriter]:
    """A writer with a scratch folder of its own below the assignment's."""
    with (
        scratch_folder(Path(assignment.scratch)) as folder,
        closing(UnitWriter(replace(assignment, scratch=str(folder)))) as writer,
    ):
        yield writer
