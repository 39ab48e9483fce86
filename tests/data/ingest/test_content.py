"""Hashes of contents."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.ingest.content import row_hashes


def test_records_have_one_hash_whatever_was_read_with_them() -> None:
    rows: list[dict[str, Any]] = [
        {"a": 1, "b": "x", "c": [1, 2.5, None], "d": {"e": "q", "f": None}, "g": True},
        {"a": 2.0, "b": None, "c": [], "d": {"e": "q", "f": 3}, "g": False},
        {"a": -5, "b": "é", "c": None, "d": None, "g": None},
    ]
    together = row_hashes(pa.RecordBatch.from_pylist(rows))
    field = pa.field("v", pa.string(), metadata={b"fmscale.json": b"1"})
    for i, row in enumerate(rows):
        assert row_hashes(pa.RecordBatch.from_pylist([row]))[0] == together[i]
        assert row_hashes(pa.RecordBatch.from_pylist([{**row, "h": None}]))[0] == together[i]
        as_text = pa.record_batch([pa.array([json.dumps(row)])], schema=pa.schema([field]))
        assert row_hashes(as_text)[0] == row_hashes(pa.RecordBatch.from_pylist([{"v": row}]))[0]
    assert len(np.unique(together)) == 3
    strings = pa.RecordBatch.from_pylist([{"a": "1"}, {"a": "2"}])
    assert row_hashes(strings)[0] != row_hashes(pa.RecordBatch.from_pylist([{"a": 1}]))[0]
