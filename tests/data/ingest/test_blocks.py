"""Blocks of records: values come back under the schema that holds all blocks."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.ingest.blocks import conform, gather, load, schema_of
from fmscale.data.ingest.formats import RawRecord
from tests.data.ingest.test_records import decoded

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def without_nulls(value: Any) -> Any:
    """A JSON value without keys of null: columns do not tell a missing key from a null."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@given(lines=st.lists(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_values_of_json_come_back(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = [json.loads(json.dumps(line)) for line in lines if line]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.data.ingest.blocks.BLOCK_ROWS", data.draw(st.integers(1, 13)))
        items = [("a", RawRecord(line, i, i + 1, 1)) for i, line in enumerate(lines)]
        blocks = list(gather(items, Path(folder)))
        schema = schema_of(blocks)
        found = [row for b in blocks for row in decoded(conform(load(b)[0], schema).to_pylist(), schema)]
    assert without_nulls(found) == without_nulls(lines)
    assert list(schema.names) == list(dict.fromkeys(name for line in lines for name in line))


def test_integers_that_no_float_holds_are_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmscale.data.ingest.blocks.BLOCK_ROWS", 1)
    lines: list[dict[str, Any]] = [{"n": 2**60 + 1, "m": 1}, {"n": 0.5, "m": 0.5}]
    blocks = list(gather([("a", RawRecord(line, 0, 1, 1)) for line in lines], tmp_path))
    schema = schema_of(blocks)
    assert [str(field.type) for field in schema] == ["string", "double"]
    assert [row for b in blocks for row in decoded(conform(load(b)[0], schema).to_pylist(), schema)] == lines


@pytest.mark.parametrize("depth", [59, 63, 64, 65, 150, 400])
def test_deep_values_come_back(tmp_path: Path, depth: int) -> None:
    """Arrow's files have 64 levels at most."""
    lines: list[dict[str, Any]] = [
        {"x": json.loads("[" * depth + "1" + "]" * depth)},
        {"y": json.loads('{"a":' * depth + "1" + "}" * depth)},
    ]
    items = [("a", RawRecord(line, i, i + 1, 1)) for i, line in enumerate(lines)]
    (block,) = gather(items, tmp_path)
    schema = schema_of([block])
    found = decoded(conform(load(block)[0], schema).to_pylist(), schema)
    assert [without_nulls(row) for row in found] == lines
