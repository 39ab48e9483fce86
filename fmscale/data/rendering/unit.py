"""A unit of a rendering: a segment of messages becomes a segment of tokens, and a record of what was left out."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.chat.render import LeftOut, Policy, RecordRenderer
from fmscale.data.ingest.record import SkippedInput, record_key
from fmscale.data.ingest.scratch import scratch_folder
from fmscale.data.samples.rendered import run_lengths
from fmscale.data.samples.segment_sizes import tables
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.data.views.mask import own_masked
from fmscale.data.workers.messages import Message
from fmscale.data.workers.serve import Run, serve
from fmscale.errors import Conflict
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.manifest import SegmentRow
from fmscale.store.datasets.templates import load_template
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.digest import canonical_json
from fmscale.store.open import open_store
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.records import open_record_segment
from fmscale.store.segments.records_writer import RecordSegmentWriter
from fmscale.store.segments.seal import segment_prefix

SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.uint32())),
        ("pieces", pa.list_(pa.uint32())),
        ("trained", pa.list_(pa.uint32())),
        ("answer", pa.string()),
        ("source", pa.string()),
    ]
)
"""Columns of a rendered record: ids of all texts, tokens of each text, run lengths of untrained and trained ids, the
expected answer of a prompt, and the id of the record of messages.
"""

BATCH = 256
"""Rendered records that are written at once."""


class UnitRenderer:
    """Does units of a job on one commit; a process has one."""

    def __init__(self, store: str, source: str, commit: int, target: str, job: str, maker: Mapping[str, Any]) -> None:
        self.backend = open_store(store)
        opened = open_dataset(self.backend, source)
        [self._commit] = opened.named([commit])
        self._masked = {split: own_masked(opened, split).get(commit) for split in self._commit.totals}
        self._target, self._job, self._shape = target, job, maker["shape"]
        self._renderer = RecordRenderer(
            load_template(self.backend, maker["template"]) if maker["template"] else None,
            from_json(load_tokenizer(self.backend, maker["tokenizer"]), f"tokenizer {maker['tokenizer']}"),
            bos=maker["bos"],
            eos=maker["eos"],
            policy=Policy(**maker["policy"]),
        )
        self.rows = [(split, row) for split, m in sorted(self._commit.manifests.items()) for row in m.rows()]
        """Split and segment of each unit."""
        self.end = self._renderer.end
        """Id of the token that ends an answer."""

    def run(self, unit: int, advance: Callable[[int], object]) -> str:
        """Do a unit; on return it is sealed and recorded. Returns the record, JSON: `split`, `seal` (None if nothing is
        left), `left_out` by reason, `counts`.
        """
        split, row = self.rows[unit]
        left_out, counts = SkippedInput(), Counter[str]()
        with (
            scratch_folder(Path(tempfile.gettempdir())) as scratch,
            RecordSegmentWriter(scratch, schema=SCHEMA, split=split) as writer,
        ):
            for rows in self._rendered(row, split, left_out, counts, advance):
                values, ids, sources, starts, stops = zip(*rows, strict=True)
                batch = pa.RecordBatch.from_pylist(list(values), schema=SCHEMA)
                writer.add(batch, ids, sources, starts, stops)
            prefix = segment_prefix(self._target, self._job, unit, split)
            seal = asdict(writer.finish(self.backend, prefix)) if writer.records else None
        outcome = {"format_version": 1, "split": split, "seal": seal, "left_out": left_out, "counts": counts}
        data, key = canonical_json(outcome), record_key(self._target, self._job, unit)
        if not store_once(self.backend, key, data):
            raise Conflict(
                f"{key} is there already and says something else of the same segment",
                found=key,
                remedy="Its software changed since: render into a dataset of another name (--to).",
            )
        return data.decode()

    def _rendered(
        self,
        row: SegmentRow,
        split: str,
        left_out: SkippedInput,
        counts: Counter[str],
        advance: Callable[[int], object],
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Rendered records of a segment in batches: values, id, source, start and stop of each."""
        segment = open_record_segment(self.backend, row.prefix, row.seal)
        places = read_document_table(self.backend, segment)
        masked = self._masked[split]
        gone = set() if masked is None else set((masked.astype(np.int64) - row.first_document).tolist())
        rows: list[tuple[Any, ...]] = []
        for first, count, table in tables(self.backend, segment):
            names = places.slice(first, count).to_pylist()
            if isinstance(table, Exception):
                left_out.merge({"damaged": {"count": count, "first": [f"{names[0]['source']}: {table}"]}})
            for at, record in enumerate([] if isinstance(table, Exception) else table.to_pylist()):
                if first + at in gone:
                    continue
                place = names[at]
                try:
                    made = self._renderer.tokens(record, self._shape)
                except LeftOut as error:
                    left_out.add(error.reason, f"{place['source']}: at {place['start']}: {error}")
                    continue
                values = {"tokens": made.tokens, "pieces": made.pieces, "trained": run_lengths(made.trained)}
                values |= {"answer": record["answer"], "source": place["id"].hex()}
                rows.append((values, *(place[name] for name in ("id", "source", "start", "stop"))))
                counts.update(
                    {"records": 1, "texts": len(made.pieces), "tokens": len(made.tokens)},
                    trained=int(made.trained.sum()),
                    **dict.fromkeys(made.notes, 1),
                )
                if len(rows) == BATCH:
                    yield rows
                    rows = []
            advance(count)
        if rows:
            yield rows


@contextmanager
def _open_worker(task: Message) -> Iterator[Run]:
    yield UnitRenderer(**task).run


if __name__ == "__main__":
    serve(_open_worker)
