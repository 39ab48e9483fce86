"""A work unit: read its parts, tokenize, write and seal its segments, then its record."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.formats import Bad, RawDocument
from fmscale.data.ingest.plan import Work, document_id, is_heldout, load_plan
from fmscale.data.ingest.record import BAD, SkippedInput, UnitRecord, record_key
from fmscale.data.ingest.scratch import scratch_folder
from fmscale.data.tokenizers.protocol import dtype_of
from fmscale.data.tokenizers.tokenizer import frame, from_json
from fmscale.errors import Conflict, StoreError
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.open import open_store
from fmscale.store.segments.seal import segment_prefix
from fmscale.store.segments.tokens_writer import TokenSegmentWriter

BATCH_CHARACTERS = 1 << 20
"""Text of a call of the tokenizer: enough to amortize the call, at tens of MB of memory."""

BATCH_DOCUMENTS = 512
"""Documents of a call of the tokenizer, at most."""

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """A job as its writers need it; sent as JSON to processes and ranks."""

    store: str
    """URL of the store."""
    dataset: str
    """Name of the dataset."""
    job: str
    """Digest of the job, whose plan is on the store."""
    roots: list[str]
    """Folders or URLs of the listing roots, which the plan refers to by number."""
    scratch: str
    """Folder of this machine for unfinished segments."""
    strict: bool
    """True if damaged input is an error."""


Advance = Callable[[int], object]
"""Receives the raw bytes of each finished part, and 0 after each batch as a sign of life."""


class UnitWriter:
    """Does units of a job; a process has one writer. Opens the store, plan and tokenizer once."""

    def __init__(self, task: UnitTask) -> None:
        self.task = task
        self._backend = open_store(task.store)
        stored = load_plan(self._backend, task.dataset, task.job)
        if stored is None:
            raise StoreError(
                "The plan of the job is not on the store",
                found=f"job {task.job} of {task.dataset}",
                remedy="Run ingest again; it stores the plan first.",
            )
        self._stored = stored
        self._units = stored.plan.units()
        content = load_tokenizer(self._backend, stored.tokenizer)
        self._tokenizer = from_json(content, f"tokenizer {stored.tokenizer}")
        self._reading = Reading(task.roots, stored.plan.options.field)

    def close(self) -> None:
        """End the process that reads tables."""
        self._reading.close()

    def run(self, unit: int, advance: Advance) -> UnitRecord:
        """Do a unit: on return it is sealed and recorded. Raises the errors of reading and storing."""
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
                            TokenSegmentWriter(Path(self.task.scratch), dtype=dtype, split=split)
                        )
                    framed = frame(tokens, self._stored.bos, self._stored.eos)
                    writers[split].add(framed, identity, source, document.start, document.stop)
                    text_bytes += len(document.text.encode())
                documents += len(batch)
            folder = (self.task.dataset, self.task.job, unit)
            seals = {
                split: writers[split].finish(self._backend, segment_prefix(*folder, split)) for split in sorted(writers)
            }
        record = UnitRecord(unit=unit, seals=seals, documents=documents, text_bytes=text_bytes, skipped=skipped)
        key = record_key(*folder)
        if not store_once(self._backend, key, record.encode()):
            raise Conflict(
                f"{key} is there already and says something else of the same work unit",
                found=key,
                remedy="Its inputs or its software changed since: delete the record, or ingest anew.",
            )
        return record

    def _batches(
        self, works: list[Work], skipped: SkippedInput, advance: Advance
    ) -> Iterator[list[tuple[str, RawDocument]]]:
        """Documents of the unit in order, with their source names, in batches."""
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
        """Documents of a part. Input without a document is counted; with `strict`, damaged input is an error."""
        for item in self._reading.documents(work):
            if isinstance(item, RawDocument) and item.text:
                yield item
                continue
            if isinstance(item, Bad):
                reason, where = item.reason, item.where
            else:
                reason, where = "empty", "" if work.file.format == "text" else f"at {item.start}"
            skipped.add(reason, f"{work.file.source}: {where}" if where else work.file.source)
            if self.task.strict and reason in BAD:
                skipped.refuse_bad()


@contextmanager
def open_writer(task: UnitTask) -> Iterator[UnitWriter]:
    """A writer with its own scratch folder below the task's."""
    with (
        scratch_folder(Path(task.scratch)) as folder,
        closing(UnitWriter(replace(task, scratch=str(folder)))) as writer,
    ):
        yield writer
