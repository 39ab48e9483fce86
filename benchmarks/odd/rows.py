"""Documents and records of a dataset, in order, with their source names."""

from collections.abc import Iterator
from typing import Any

from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.records import open_record_segment, read_records
from fmscale.store.segments.tokens import open_segment, read_tokens


def read_back(store: str, name: str) -> Iterator[tuple[str, Any]]:
    """Source name and bytes of each document of the split `train`, or each record. Tokens are bytes and an EOS."""
    backend = open_store(store, read_only=True)
    for commit in open_dataset(backend, name).commits():
        manifest = commit.manifests["train"]
        for index in range(manifest.segments):
            place = manifest.segment(index)
            if commit.tokenizer is None:
                records = open_record_segment(backend, *place)
                rows = read_records(backend, records, 0, records.documents).to_pylist()
                sources = read_document_table(backend, records)["source"].to_pylist()
                yield from zip(sources, rows, strict=True)
                continue
            segment = open_segment(backend, *place)
            end = 0
            for row in read_document_table(backend, segment).to_pylist():
                begin, end = end, end + row["tokens"]
                tokens = read_tokens(backend, segment, begin, row["tokens"])
                assert tokens[-1] == ByteTokenizer.eos_id
                yield row["source"], tokens[:-1].astype("uint8").tobytes()
