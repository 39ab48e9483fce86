"""Messages from files to a rendered dataset: places of what was left out, new commits, kills, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmscale.data.chat.render import Policy
from fmscale.data.chat.template import TemplateFault
from fmscale.data.rendering.job import render_dataset, render_notes
from fmscale.data.rendering.show import shown
from fmscale.data.samples.rendered import RenderedSamples, run_lengths
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import size_text
from fmscale.data.views.mask import find_documents, make_mask, own_masked
from fmscale.errors import DataError
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.templates import ChatTemplate, store_template
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.open import open_store
from fmscale.store.segments.records import open_record_segment, read_records
from tests.helpers.chats import chat, ingest_messages, rendered, store_family, write_lines

ROOT = Path(__file__).parents[3]


def talks(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"messages": chat(f"{i} + {i}", str(i + i), "again", str(i + i))} for i in range(first, first + count)]


def records(store: str, dataset: str) -> list[dict[str, Any]]:
    backend = open_store(store)
    made = []
    for commit in open_dataset(backend, dataset).commits():
        for row in commit.manifests["train"].rows():
            segment = open_record_segment(backend, row.prefix, row.seal)
            made += read_records(backend, segment, 0, row.documents).to_pylist()
    return made


def test_what_has_no_form_is_counted_with_file_and_place(tmp_path: Path) -> None:
    bad = [
        {"messages": chat("a")},
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "boss", "content": "x"}]},
    ]
    path = write_lines(tmp_path / "in/a.jsonl", [*talks(2), *bad])
    tools = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    table = {"messages": [chat("a", "b"), [*chat("a"), tools], chat("a")]}
    pq.write_table(pa.Table.from_pydict(table), tmp_path / "in/b.parquet")
    result = ingest_messages(str(tmp_path / "s"), "chats", path.parent)
    assert (result.documents, result.files["added"]["count"]) == (4, 2)
    lines = path.read_text().splitlines(keepends=True)
    place = sum(map(len, lines[:2]))
    assert result.skipped["unanswered"] == {
        "count": 2,
        "first": [f"a.jsonl: byte {place}: 1 messages", "b.parquet: row 2: 1 messages"],
    }
    assert {reason: names["count"] for reason, names in result.skipped.items()} == {
        "unanswered": 2,
        "kind": 1,
        "role": 1,
    }
    stored = [[json.loads(one) for one in record["messages"]] for record in records(str(tmp_path / "s"), "chats")]
    assert stored == [*(one["messages"] for one in talks(2)), chat("a", "b"), [*chat("a"), tools]]
    again = ingest_messages(str(tmp_path / "s"), "chats", path.parent)
    assert not again.new


def test_a_file_of_messages_that_was_touched_is_known_and_may_grow(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "in/a.jsonl", [*talks(3), {"messages": chat("a")}])
    pq.write_table(pa.Table.from_pydict({"messages": [chat("a", "b"), chat("a")]}), tmp_path / "in/b.parquet")
    ingest_messages(store, "chats", path.parent)
    for file in path.parent.iterdir():
        file.write_bytes(file.read_bytes())
    again = ingest_messages(store, "chats", path.parent)
    assert (again.new, again.files["known"]["count"]) == (False, 2)
    write_lines(path, [*talks(3), {"messages": chat("a")}, *talks(2, 50)])
    grown = ingest_messages(store, "chats", path.parent)
    assert (grown.documents, grown.files["grown"]["first"]) == (2, ["a.jsonl"])
    write_lines(path, talks(3, 7))
    with pytest.raises(DataError, match="another content"):
        ingest_messages(store, "chats", path.parent)


@pytest.mark.parametrize(("shape", "told"), [("completion", "those of --as chat"), ("prompts", "--as chat")])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, shape: str, told: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", talks(2))
    with pytest.raises(DataError, match=told) as caught:
        ingest_messages(str(tmp_path / "s"), "d", path, shape)
    assert "Take the --as that fits" in caught.value.remedy


def test_a_damaged_record_is_an_error_with_strict(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*talks(2), {"messages": chat("a")}])
    with pytest.raises(DataError, match="without a message of the assistant"):
        ingest_messages(str(tmp_path / "s"), "d", path, strict=True)


def test_a_dataset_keeps_its_shape(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "a.jsonl", talks(2))
    ingest_messages(store, "d", path)
    rendered(store, "d", "d.r")
    other = write_lines(tmp_path / "b.jsonl", [{"prompt": "a"}])
    for name, shape, told in (
        ("d", "prompts", "with --as chat"),
        ("d", "records", "with --as chat"),
        ("d.r", "chat", "rendered"),
    ):
        with pytest.raises(DataError, match=told):
            ingest_messages(store, name, other, shape)


def test_a_rendering_has_tokens_sizes_notes_and_grows_with_its_source(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "in/a.jsonl", talks(60))
    ingest_messages(store, "chats", path.parent, heldout=0.2, unit_bytes=1000)
    [first] = rendered(store, "chats", "chats.r")
    assert (first["counts"]["records"], first["left_out"]) == (60, {})
    write_lines(tmp_path / "in/b.jsonl", [*talks(30, 100), {"messages": chat("a", "b", weight=0)}])
    ingest_messages(store, "chats", path.parent)
    [second] = rendered(store, "chats", "chats.r")
    assert second["counts"]["records"] == 30
    [name] = second["left_out"]["no trained token"]["first"]
    assert name.startswith("b.jsonl: at ")
    assert name.endswith(": no turn of the assistant has a weight")
    assert rendered(store, "chats", "chats.r") == []
    backend = open_store(store)
    dataset = open_dataset(backend, "chats.r")
    assert not verify_dataset(backend, dataset)
    for commit, source in zip(dataset.commits(), open_dataset(backend, "chats").commits(), strict=True):
        notes = render_notes(commit)
        assert notes is not None
        assert (notes["shape"], notes["tokenizer"], notes["commit"]) == ("chat", commit.tokenizer, source.digest)
        assert commit.eos == store_family(store, "llama3")["eos"]
        manifest = commit.manifests["train"]
        spec = RenderedSamples(too_long="refuse", max_tokens=None)
        column = open_column(backend, column_key("chats.r", manifest.digest, SIZE, size_text(spec)))
        assert column is not None
        assert column.take(np.arange(column.records, dtype=np.uint64)).min() > 10
    [one] = shown(backend, dataset.commits()[0], 1)
    assert [run["trained"] for run in one["texts"][0]] == [False, True] * 2
    assert all(run["text"].endswith("<|eot_id|>") for run in one["texts"][0] if run["trained"])


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", talks(60))
    made = []
    for workers in (1, 2):
        store = str(tmp_path / f"s{workers}")
        ingest_messages(store, "chats", path, unit_bytes=1000)
        taken = store_family(store, "llama3")
        render_dataset(store, "chats", "r", **taken, policy=Policy(), workers=workers)
        assert len(list(open_dataset(open_store(store), "r").commits()[0].manifests["train"].rows())) > 2
        made.append(records(store, "r"))
    assert made[0] == made[1]


def test_records_that_the_source_masks_are_left_out(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "a.jsonl", talks(5))
    ingest_messages(store, "chats", path)
    backend = open_store(store)
    dataset = open_dataset(backend, "chats")
    gone = find_documents(dataset, where=lambda table: np.arange(len(table)) == 3)
    dataset.append_masks({"train": make_mask(dataset, gone)}, "a test")
    [made] = rendered(store, "chats", "r")
    assert made["counts"]["records"] == 4


def test_replaced_files_are_masked_where_they_were_rendered(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "in/a.jsonl", talks(5))
    write_lines(tmp_path / "in/b.jsonl", talks(3, 50))
    ingest_messages(store, "chats", path.parent)
    rendered(store, "chats", "r")
    write_lines(path, talks(4, 7))
    ingest_messages(store, "chats", path.parent, replace=True)
    for _ in range(2):
        rendered(store, "chats", "r")
        dataset = open_dataset(open_store(store), "r")
        assert {n: places.tolist() for n, places in own_masked(dataset, "train").items()} == {0: [0, 1, 2, 3, 4], 1: []}
        assert len(dataset.masks("train")) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [({"trained": "last"}, "policy: "), ({"family": "qwen2_5"}, "tokenizer: ")],
)
def test_another_rendering_needs_another_name(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "a.jsonl", talks(2))
    ingest_messages(store, "chats", path)
    rendered(store, "chats", "r")
    with pytest.raises(DataError, match="rendered in another way") as caught:
        rendered(store, "chats", "r", **change)
    assert told in str(caught.value.found)
    assert "--to NAME" in caught.value.remedy
    with pytest.raises(DataError, match="is no rendering"):
        rendered(store, "chats", "chats")
    with pytest.raises(DataError, match="holds no messages"):
        rendered(store, "r", "r2")


def test_a_rendering_without_a_record_or_with_a_bad_template_makes_no_commit(tmp_path: Path) -> None:
    store, path = str(tmp_path / "s"), write_lines(tmp_path / "a.jsonl", [{"messages": chat("a", "b", weight=0)}])
    ingest_messages(store, "chats", path)
    with pytest.raises(DataError, match="No record of dataset chats can be rendered") as caught:
        rendered(store, "chats", "r")
    assert "1 no trained token (a.jsonl: at 0" in str(caught.value.found)
    loops = ChatTemplate(
        text="{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", special_tokens={}
    )
    taken = {**store_family(store, "llama3"), "template": store_template(open_store(store), loops)}
    with pytest.raises(TemplateFault, match="loops"):
        render_dataset(store, "chats", "r2", **taken, policy=Policy(), workers=1)
    assert not (tmp_path / "s/datasets/r2/log").exists()


@pytest.mark.slow
def test_a_job_that_is_killed_at_any_write_goes_on(tmp_path: Path) -> None:
    store, path = str(tmp_path / "store"), write_lines(tmp_path / "a.jsonl", talks(6))
    ingest_messages(store, "chats", path, unit_bytes=800)
    store_family(store, "llama3")
    out = subprocess.run(
        [sys.executable, "-m", "tests.helpers.renderer", str(tmp_path), "chats", "r"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) > 25
    whole = None
    for line in lines:
        backend = open_store(line["store"])
        dataset = open_dataset(backend, "r")
        [commit] = dataset.commits()
        assert not verify_dataset(backend, dataset)
        digests = {split: manifest.digest for split, manifest in commit.manifests.items()}
        whole = whole or digests
        assert digests == whole
        assert line["commits"] in (0, 1)


def test_run_lengths_begin_with_what_is_not_trained() -> None:
    for mask, runs in (([0, 0, 1, 1, 0], [2, 2, 1]), ([1, 1], [0, 2]), ([0], [1]), ([1, 0], [0, 1, 1]), ([], [])):
        assert run_lengths(np.array(mask, dtype=bool)) == runs
