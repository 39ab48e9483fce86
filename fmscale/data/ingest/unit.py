"""A work unit: read its parts, tokenize, write and seal its segments, then its record. Records are not tokenized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.blocks import RecordBlock, conform, gather, load, schema_of
from fmscale.data.ingest.content import U64, Tally, data_hash, row_hashes
from fmscale.data.ingest.formats import SINGLE, Bad, RawDocument
from fmscale.data.ingest.messages import normal_blocks
from fmscale.data.ingest.plan import TRAIN, Work, document_id, load_plan
from fmscale.data.ingest.record import BAD, SkippedInput, UnitRecord, record_key
from fmscale.data.ingest.scratch import scratch_folder
from fmscale.data.ingest.tally import is_empty
from fmscale.data.tokenizers.protocol import Tokenizer, dtype_of
from fmscale.data.tokenizers.tokenizer import frame, from_json
from fmscale.errors import Conflict, StoreError
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.open import open_store
from fmscale.store.segments.array_writer import scratch_errors
from fmscale.store.segments.records_writer import RecordSegmentWriter
from fmscale.store.segments.seal import segment_prefix
from fmscale.store.segments.tokens_writer import TokenSegmentWriter
from fmscale.store.segments.writer import SegmentWriter

BATCH_BYTES = 1 << 20
"""Text of a call of the tokenizer: enough to amortize the call, at tens of MB of memory."""

BATCH_DOCUMENTS = 512
"""Documents of a call of the tokenizer, at most."""


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """A job as its writers need it; sent as JSON to processes and ranks."""

    store: str
    """URL of the store."""
    dataset: str
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
        self._tokenizer: Tokenizer | None = None
        if stored.tokenizer is not None:
            content = load_tokenizer(self._backend, stored.tokenizer)
            self._tokenizer = from_json(content, f"tokenizer {stored.tokenizer}")
        self._files = {file.source: file for file in stored.plan.files}
        self._reading = Reading(task.roots, stored.plan.options.field or None, stored.plan.options.max_document)

    def close(self) -> None:
        """End the process that reads tables."""
        self._reading.close()

    def run(self, unit: int, advance: Advance) -> UnitRecord:
        """Do a unit: on return it is sealed and recorded. Raises the errors of reading and storing."""
        skipped = SkippedInput()
        self._tallies: dict[str, Tally] = {}
        self._splits: dict[str, str] = {}
        write = self._write_records if self._tokenizer is None else self._write_documents
        with ExitStack() as stack:
            writers, text_bytes = write(self._units[unit], skipped, advance, stack)
            folder = (self.task.dataset, self.task.job, unit)
            seals = {
                split: writers[split].finish(self._backend, segment_prefix(*folder, split)) for split in sorted(writers)
            }
        record = UnitRecord(
            unit=unit,
            seals=seals,
            documents=sum(tally.documents for tally in self._tallies.values()),
            text_bytes=text_bytes,
            skipped=skipped,
            tallies=self._tallies,
            splits=self._splits,
        )
        key = record_key(*folder)
        if not store_once(self._backend, key, record.encode()):
            raise Conflict(
                f"{key} is there already and says something else of the same work unit",
                found=key,
                remedy="Its inputs or its software changed since: delete the record, or ingest anew.",
            )
        return record

    def _write_documents(
        self, works: list[Work], skipped: SkippedInput, advance: Advance, stack: ExitStack
    ) -> tuple[Mapping[str, SegmentWriter], int]:
        """Tokenize the documents. Returns the writers by split, and the bytes of the text."""
        assert self._tokenizer is not None, "a job of text has a tokenizer"
        dtype = dtype_of(self._tokenizer)
        writers: dict[str, TokenSegmentWriter] = {}
        bos, eos = self._stored.bos, self._stored.eos
        text_bytes = 0
        for batch in self._batches(works, skipped, advance):
            sources = [source for source, _ in batch]
            starts, stops = [document.start for _, document in batch], [document.stop for _, document in batch]
            contents = np.array([data_hash(document.data) for _, document in batch], dtype=np.uint64)
            text_bytes += sum(len(document.data) for _, document in batch)
            if len(batch[0][1].data) > BATCH_BYTES:
                edges = [np.array([] if token is None else [token], dtype) for token in (bos, eos)]
                framed: list[Any] = [chain(edges[:1], self._tokenizer.encode_parts(batch[0][1].data), edges[1:])]
            else:
                ids = self._tokenizer.encode_batch([document.text for _, document in batch])
                framed = [frame(one, bos, eos) for one in ids]
            batch.clear()  # a huge document would stay in memory while the next is read
            splits = self._sort(sources, starts, stops, contents)
            for source, start, stop, split, tokens in zip(sources, starts, stops, splits, framed, strict=True):
                if split not in writers:
                    writers[split] = stack.enter_context(
                        TokenSegmentWriter(Path(self.task.scratch), dtype=dtype, split=split)
                    )
                writers[split].add(tokens, document_id(source, start), source, start, stop)
        return writers, text_bytes

    def _sort(self, sources: Sequence[str], starts: list[int], stops: list[int], contents: U64) -> list[str]:
        """The splits of consecutive documents or records, which are counted in the tallies of their files."""
        if self._stored.plan.options.by_name:
            ids = map(document_id, sources, starts)
            contents = np.array([int.from_bytes(one[:8], "big") for one in ids], dtype=np.uint64)
        splits = [self._stored.plan.options.split(content) for content in contents.tolist()]
        begin = 0
        for source, run in groupby(sources):
            part = slice(begin, begin := begin + sum(1 for _ in run))
            self._tallies.setdefault(source, Tally()).add(starts[part], stops[part], contents[part])
            if self._files[source].format in SINGLE and splits[part.start] != TRAIN:
                self._splits[source] = splits[part.start]
        return splits

    def _write_records(
        self, works: list[Work], skipped: SkippedInput, advance: Advance, stack: ExitStack
    ) -> tuple[Mapping[str, SegmentWriter], int]:
        """Write all columns, in two passes. Returns the writers by split, and 0 as there is no text."""
        scratch = Path(self.task.scratch)
        with scratch_errors(scratch):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="blocks-", dir=scratch)))
        blocks: list[RecordBlock] = []
        items = self._items(works, skipped, advance, str(folder))
        shape = self._stored.plan.options.shape
        for block in normal_blocks(items, shape, folder, skipped) if shape else gather(items, folder):
            blocks.append(block)
            advance(0)
        schema = schema_of(blocks)
        writers: dict[str, RecordSegmentWriter] = {}
        for block in blocks:
            batch, columns = load(block)
            sources, starts, stops = origin = [column.to_pylist() for column in columns]
            new = [row for row, source in enumerate(sources) if starts[row] >= self._files[source].begin]
            if len(new) < len(batch):
                batch = batch.take(pa.array(new, pa.int64()))
                sources, starts, stops = origin = [[column[row] for row in new] for column in origin]
            splits = self._sort(sources, starts, stops, row_hashes(batch))
            batch = conform(batch, schema)
            names = [document_id(source, start) for source, start in zip(sources, starts, strict=True)]
            for split in dict.fromkeys(splits):
                if split not in writers:
                    writers[split] = stack.enter_context(RecordSegmentWriter(scratch, schema=schema, split=split))
                rows = [row for row, other in enumerate(splits) if other == split]
                # The whole batch without a copy: it may be a single huge record.
                part = batch if len(rows) == len(splits) else batch.take(rows)
                writers[split].add(part, *([column[row] for row in rows] for column in (names, *origin)))
            Path(block.path).unlink()
            advance(0)
        return writers, 0

    def _batches(
        self, works: list[Work], skipped: SkippedInput, advance: Advance
    ) -> Iterator[list[tuple[str, RawDocument]]]:
        """Documents of the unit in order, with their source names, in batches; a larger document is one of its own."""
        batch: list[tuple[str, RawDocument]] = []
        size = 0
        for source, document in self._items(works, skipped, advance):
            if batch and size + len(document.data) > BATCH_BYTES:
                yield batch
                advance(0)
                batch, size = [], 0
            batch.append((source, document))
            size += len(document.data)
            del document  # a huge document would stay in memory while the next is read
            if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
                yield batch
                advance(0)
                batch, size = [], 0
        if batch:
            yield batch

    def _items(
        self, works: list[Work], skipped: SkippedInput, advance: Advance, blocks: str = ""
    ) -> Iterator[tuple[str, Any]]:
        """Documents, or records, of the unit in order, with their source names. Input without any is counted; with
        `strict`, damaged input is an error.
        """
        for work in works:
            for item in self._reading.documents(work, blocks):
                if isinstance(item, RawDocument) and item.start < work.file.begin:
                    continue
                if isinstance(item, Bad):
                    reason, where = item.reason, item.where
                elif not is_empty(item):
                    yield work.file.source, item
                    del item  # a huge record would stay in memory while the next is read
                    continue
                else:
                    reason, where = "empty", "" if work.file.format == "text" else f"at {item.start}"
                skipped.add(reason, f"{work.file.source}: {where}" if where else work.file.source)
                if self.task.strict and reason in BAD:
                    skipped.refuse_bad()
            advance(work.bytes)


@contextmanager
def open_writer(task: UnitTask) -> Iterator[UnitWriter]:
    """A writer with its own scratch folder below the task's."""
    with (
        scratch_folder(Path(task.scratch)) as folder,
        closing(UnitWriter(replace(task, scratch=str(folder)))) as writer,
    ):
        yield writer
