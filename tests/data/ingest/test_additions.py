"""Adding to a dataset: only what is new, under names and splits that belong to the dataset."""

import gzip
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmscale.data.ingest import IngestResult, ingest
from fmscale.data.ingest.content import text_hash
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.data.views.mask import load_mask
from fmscale.data.views.token_view import make_view
from fmscale.errors import Conflict, DataError
from fmscale.infer.heldout import stored_documents
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import references
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.retirement import retire
from fmscale.store.open import open_store
from tests.data.ingest.corpora import contents, documents, lines, put

SPLITS = ("train", "heldout")


def run(paths: Any, store: Path | str, **options: Any) -> IngestResult:
    paths = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return ingest(paths, store=str(store), **{"dataset": "d", "tokenizer": "bytes", "workers": 1, **options})


def fates(result: IngestResult) -> dict[str, int]:
    return {fate: files["count"] for fate, files in result.files.items()}


def held(store: Path | str) -> dict[str, Counter[tuple[str, int, str]]]:
    """Source, start and text of the documents that a new view of each split delivers."""
    backend = open_store(str(store))
    dataset = open_dataset(backend, "d")
    found: dict[str, Counter[tuple[str, int, str]]] = {}
    for split in SPLITS:
        masked = set()
        for digest in dataset.masks(split):
            columns = load_mask(backend, "d", digest).documents
            masked |= set(zip(columns.commit.tolist(), columns.position.tolist(), strict=True))
        found[split] = Counter()
        for commit in dataset.commits():
            position = 0
            for source, start, _, _, tokens in documents(backend, "d", split, commit.number):
                if (commit.number, position) not in masked:
                    found[split][source, start, bytes(tokens[:-1]).decode()] += 1
                position += len(tokens)
    return found


def texts(store: Path | str) -> Counter[str]:
    """All texts of both splits; each with its count."""
    return Counter({text: n for split in held(store).values() for (_, _, text), n in split.items()})


def some(first: int, last: int) -> list[str]:
    return [f"text {i} " + "word " * (i % 7) for i in range(first, last)]


def test_growing_folders_are_ingested_again_and_again(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(some(0, 50)))
    first = run(tmp_path / "in", tmp_path / "store", heldout=0.3)
    assert fates(first) == {"added": 1}
    put(tmp_path / "in/more/b.jsonl", lines(some(50, 100)))
    put(tmp_path / "in/c.md", "a text")
    second = run(tmp_path / "in", tmp_path / "store")
    assert (fates(second), second.documents) == ({"added": 2, "known": 1}, 51)
    with (tmp_path / "in/a.jsonl").open("ab") as file:
        file.write(lines(some(100, 130)))
    third = run(tmp_path / "in", tmp_path / "store")
    assert (fates(third), third.documents) == ({"grown": 1, "known": 2}, 30)
    again = run(tmp_path / "in", tmp_path / "store")
    assert (fates(again), again.new, again.commit) == ({"known": 3}, False, 2)
    assert texts(tmp_path / "store") == Counter([*some(0, 130), "a text"])
    one = tmp_path / "one"
    run(tmp_path / "in", one, heldout=0.3)
    assert held(one) == held(tmp_path / "store"), "as if it had been ingested at once"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", ["text", "records"])
def test_files_that_grew_at_their_end(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "in" / name

    def write(count: int) -> None:
        rows = [{"text": text} for text in some(0, count)]
        put(path, b"")
        match name.partition(".")[2]:
            case "jsonl":
                path.write_bytes(lines(some(0, count)))
            case "jsonl.gz":
                path.write_bytes(gzip.compress(lines(some(0, count))))
            case "json":
                path.write_text(json.dumps(rows))
            case "parquet":
                pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
            case _:
                with pa.ipc.new_file(path, pa.schema({"text": pa.string()})) as file:
                    file.write_table(pa.Table.from_pylist(rows), 4)

    options = {"kind": kind, "tokenizer": "bytes" if kind == "text" else None}
    write(9)
    assert run(path, tmp_path / "store", **options).documents == 9
    write(20)
    grown = run(tmp_path / "in", tmp_path / "store", **options)
    assert (fates(grown), grown.documents, grown.skipped) == ({"grown": 1}, 11, {})
    write(15)
    with pytest.raises(DataError, match="another content"):
        run(path, tmp_path / "store", **options)


def test_a_line_that_was_written_half_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    whole = lines(some(0, 3))
    path = put(tmp_path / "in/log.jsonl", whole[:-20])
    assert run(path, tmp_path / "store").skipped["broken"]["count"] == 1
    put(path, whole + lines(some(3, 4)))
    result = run(path, tmp_path / "store")
    assert (fates(result), result.documents, result.skipped) == ({"grown": 1}, 2, {})
    assert texts(tmp_path / "store") == Counter(some(0, 4))


def test_other_arguments_folders_places_and_times_find_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "here/in"
    put(tree / "a/x.md", "first")
    put(tree / "b/x.md", "second")
    put(tree / "b/y.jsonl", lines(some(0, 5)))
    run(tree / "b", tmp_path / "store")
    before = {"b": ["x.md", "y.jsonl"]}
    assert run(tree / "b/x.md", tmp_path / "store").files["known"]["first"] == ["x.md"]
    wider = run([tree / "a", tree / "b"], tmp_path / "store")
    assert (wider.files["known"]["first"], wider.files["added"]["first"]) == (before["b"], ["a/x.md"])
    monkeypatch.chdir(tree)
    for paths in ([".."], ["."], ["a", "b/*"], ["a/../b/y.jsonl", "a"], [f"file://{tree}/a"]):
        assert set(fates(run(paths, tmp_path / "store"))) == {"known"}, paths
    os.utime(tree / "b/x.md")
    os.utime(tree / "b/y.jsonl", (1, 1))
    assert fates(run(tree, tmp_path / "store")) == {"known": 3}
    shutil.copytree(tree, tmp_path / "there")
    assert fates(run(tmp_path / "there/b", tmp_path / "store")) == {"known": 2}
    monkeypatch.chdir(tmp_path)
    shutil.move(tree, tmp_path / "moved")
    put(tmp_path / "moved/b/new.md", "third")
    moved = run(tmp_path / "moved/b", tmp_path / "store")
    assert (fates(moved), moved.files["added"]["first"]) == ({"known": 2, "added": 1}, ["new.md"])
    assert texts(tmp_path / "store") == Counter(["first", "second", "third", *some(0, 5)])


def test_another_content_of_the_same_name_size_and_time_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "in/a.md", "first")
    put(tmp_path / "in/b.md", "other")
    run(tmp_path / "in", tmp_path / "store")
    before = contents(tmp_path / "store")
    put(tmp_path / "in/a.md", "FIRST")
    with pytest.raises(DataError, match="1 file has another content") as caught:
        run(tmp_path / "in", tmp_path / "store")
    assert caught.value.found == "a.md"
    assert contents(tmp_path / "store") == before
    put(tmp_path / "in/c.md", "third")
    result = run(tmp_path / "in", tmp_path / "store")
    assert (fates(result), result.files["changed"]["first"]) == ({"added": 1, "known": 1, "changed": 1}, ["a.md"])
    with pytest.raises(DataError, match="another content"):
        run(tmp_path / "in", tmp_path / "store", strict=True)
    result = run(tmp_path / "in", tmp_path / "store", replace=True)
    assert fates(result) == {"replaced": 1, "known": 2}
    assert fates(run(tmp_path / "in", tmp_path / "store", replace=True)) == {"known": 3}
    tokenizer = ByteTokenizer()
    read = stored_documents(
        open_store(str(tmp_path / "store")), "d", "train", tokenizer, bos=None, eos=tokenizer.eos_id
    )
    assert [document.text for document in read] == [b"other", b"third", b"FIRST"], "evaluation does not see the old"
    assert texts(tmp_path / "store") == Counter(["FIRST", "other", "third"])


def test_a_copied_tree_with_an_edited_file_is_no_second_tree(tmp_path: Path) -> None:
    put(tmp_path / "in/a.md", "first")
    put(tmp_path / "in/b.jsonl", lines(some(0, 9)))
    run(tmp_path / "in", tmp_path / "store")
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    put(tmp_path / "copy/a.md", "first, edited")
    put(tmp_path / "copy/b.jsonl", lines(["a line before", *some(0, 9)]))
    with pytest.raises(DataError, match="2 files"):
        run(tmp_path / "copy", tmp_path / "store")
    put(tmp_path / "copy/b.jsonl", lines(some(0, 9)))
    with pytest.raises(DataError, match="1 file") as caught:
        run(tmp_path / "copy", tmp_path / "store")
    assert caught.value.found == "a.md"


def test_another_file_of_the_same_name_gets_another_name(tmp_path: Path) -> None:
    put(tmp_path / "monday/data.jsonl", lines(some(0, 9)))
    put(tmp_path / "tuesday/data.jsonl", lines(some(9, 18)))
    put(tmp_path / "x/tuesday/data.jsonl", lines(some(18, 20)))
    run(tmp_path / "monday/data.jsonl", tmp_path / "store")
    second = run(tmp_path / "tuesday", tmp_path / "store")
    assert second.files["added"]["first"] == ["tuesday/data.jsonl"]
    third = run(tmp_path / "x/tuesday", tmp_path / "store")
    assert third.files["added"]["first"] == ["x/tuesday/data.jsonl"]
    for folder in ("monday", "tuesday", "x/tuesday"):
        assert fates(run(tmp_path / folder, tmp_path / "store")) == {"known": 1}
    ids = [identity for *_, identity, _ in documents(open_store(str(tmp_path / "store")), "d", "train")]
    assert len(ids) == len(set(ids)) == 20


def test_a_renamed_file_is_known_and_a_rotated_log_too(tmp_path: Path) -> None:
    put(tmp_path / "in/app.jsonl", lines(some(0, 9)))
    put(tmp_path / "in/x.md", "text")
    run(tmp_path / "in", tmp_path / "store")
    (tmp_path / "in/x.md").rename(tmp_path / "in/y.md")
    (tmp_path / "in/app.jsonl").rename(tmp_path / "in/app.1.jsonl")
    put(tmp_path / "in/app.jsonl", lines(some(9, 12)))
    result = run(tmp_path / "in", tmp_path / "store")
    assert (fates(result), result.documents) == ({"known": 2, "added": 1}, 3)
    assert texts(tmp_path / "store") == Counter(["text", *some(0, 12)])
    assert fates(run(tmp_path / "in", tmp_path / "store")) == {"known": 3}


def test_copies_never_straddle_and_edited_files_keep_their_split(tmp_path: Path) -> None:
    share = 0.5
    for i in range(40):
        put(tmp_path / f"in/{i}.md", f"text {i}")
    put(tmp_path / "in/copies.jsonl", lines([f"text {i}" for i in range(40)]))
    run(tmp_path / "in", tmp_path / "store", heldout=share)
    split_of = {source: split for split in SPLITS for source, _, _ in held(tmp_path / "store")[split]}
    for version in range(2):
        for i in range(40):
            put(tmp_path / f"in/{i}.md", f"text {i}, version {version}")
        run(tmp_path / "in", tmp_path / "store", replace=True)
    now = held(tmp_path / "store")
    assert {source: split for split in SPLITS for source, _, _ in now[split] if source != "copies.jsonl"} == {
        source: split for source, split in split_of.items() if source != "copies.jsonl"
    }
    pinned = [text for split in SPLITS for s, _, text in now[split] if s != "copies.jsonl"]
    assert any((text_hash(text) < share * 2**64) != (text in {t for _, _, t in now["heldout"]}) for text in pinned)
    put(tmp_path / "in/more.jsonl", lines(pinned))
    run(tmp_path / "in", tmp_path / "store")
    both = [{text for _, _, text in held(tmp_path / "store")[split]} for split in SPLITS]
    assert both[0] & both[1] == set(), "copies of an edited file follow it"
    news = [f"text {i}" for i in range(40, 80)]
    put(tmp_path / "in/news.jsonl", lines(news))
    run(tmp_path / "in", tmp_path / "store")
    for i, text in enumerate(news):
        put(tmp_path / f"in/{i}.md", text)
    run(tmp_path / "in", tmp_path / "store", replace=True)
    both = [{text for _, _, text in held(tmp_path / "store")[split]} for split in SPLITS]
    assert both[0] & both[1] == set(), "an edited file follows the copies of its new content"


def test_a_new_view_reads_the_new_version_and_an_old_view_stays(tmp_path: Path) -> None:
    put(tmp_path / "in/a.md", "a" * 99)
    put(tmp_path / "in/b.md", "b" * 99)
    run(tmp_path / "in", tmp_path / "store")
    dataset = open_dataset(open_store(str(tmp_path / "store")), "d")
    old = make_view(dataset, sequence_length=10)
    put(tmp_path / "in/a.md", "c" * 299)
    run(tmp_path / "in", tmp_path / "store", replace=True)
    dataset = open_dataset(open_store(str(tmp_path / "store")), "d")
    assert make_view(dataset, sequence_length=10).counts == (100, 300)
    assert make_view(dataset, sequence_length=10, commits=[0]) == old
    retire(dataset.log, [1], lambda entry: references("d", entry.body))
    dataset = open_dataset(open_store(str(tmp_path / "store")), "d")
    assert make_view(dataset, sequence_length=10) == old, "without the new version the old one is back"


def test_the_share_of_held_out_documents_belongs_to_the_dataset(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(some(0, 40)))
    run(tmp_path / "in", tmp_path / "store", heldout=0.25)
    put(tmp_path / "in/b.jsonl", lines(some(40, 80)))
    with pytest.raises(DataError, match="another share of its documents") as caught:
        run(tmp_path / "in", tmp_path / "store", heldout=0.0)
    assert caught.value.found == "--heldout 0"
    assert run(tmp_path / "in", tmp_path / "store").splits["heldout"]["documents"] > 0


def test_a_dry_run_says_all_and_writes_nothing(tmp_path: Path) -> None:
    for i in range(9):
        put(tmp_path / f"in/{i}.md", f"text {i}")
    first = run(tmp_path / "in", tmp_path / "new", dry_run=True)
    assert (first.files["added"]["first"], first.commit, first.new) == ([f"{i}.md" for i in range(9)], None, False)
    assert not (tmp_path / "new").exists()
    run(tmp_path / "in", tmp_path / "store")
    put(tmp_path / "in/1.md", "another text")
    put(tmp_path / "in/c.bin", b"\0\0")
    put(tmp_path / "in/n.md", "new")
    before = contents(tmp_path / "store")
    said = run(tmp_path / "in", tmp_path / "store", dry_run=True)
    assert fates(said) == {"added": 1, "known": 8, "changed": 1}
    assert said.skipped["binary"]["first"] == ["c.bin"]
    assert contents(tmp_path / "store") == before


def test_a_commit_made_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/a.md", "text")
    put(tmp_path / "in/b.md", "text b")
    room = sys.modules["fmscale.data.ingest"]
    commit_job = room.commit_job

    def late(*arguments: Any) -> IngestResult:
        with monkeypatch.context() as patch:
            patch.setattr(room, "commit_job", commit_job)
            run(tmp_path / "in/a.md", tmp_path / "store")
        result: IngestResult = commit_job(*arguments)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(room, "commit_job", late)
        with pytest.raises(Conflict, match="meanwhile") as caught:
            run(tmp_path / "in", tmp_path / "store")
    assert caught.value.found == "a.md"
    assert fates(run(tmp_path / "in", tmp_path / "store")) == {"added": 1, "known": 1}


def test_another_field_of_known_files_is_another_content(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "title": f"title {i}"} for i in range(5)]
    put(tmp_path / "in/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "in", tmp_path / "store")
    with pytest.raises(DataError, match="another content"):
        run(tmp_path / "in", tmp_path / "store", field="title")


def test_files_of_a_retired_commit_are_new_again(tmp_path: Path) -> None:
    path = put(tmp_path / "in/a.jsonl", lines(some(0, 5)))
    run(path, tmp_path / "store")
    put(path, lines(some(0, 9)))
    run(path, tmp_path / "store")
    dataset = open_dataset(open_store(str(tmp_path / "store")), "d")
    retire(dataset.log, [1], lambda entry: references("d", entry.body))
    assert fates(run(path, tmp_path / "store")) == {"grown": 1}
    dataset = open_dataset(open_store(str(tmp_path / "store")), "d")
    retire(dataset.log, [0], lambda entry: references("d", entry.body))
    with pytest.raises(DataError, match="another content"):
        run(path, tmp_path / "store")
    assert fates(run(path, tmp_path / "store", replace=True)) == {"replaced": 1}
    assert texts(tmp_path / "store") == Counter(some(0, 9))


def test_objects_of_a_store_are_known_by_their_tags(store_url: str, store: Backend, tmp_path: Path) -> None:
    base, mark, query = store_url.partition("?")
    if store_url.startswith("memory://"):
        source, raw = store_url, ""
    else:
        source, raw = f"{base}/raw{mark}{query}", "raw/"
    store.put(f"{raw}a.jsonl", lines(some(0, 5)))
    store.put(f"{raw}b.md", b"text")
    assert fates(run(source, tmp_path / "store")) == {"added": 2}
    store.put(f"{raw}a.jsonl", lines(some(0, 8)))
    store.put(f"{raw}c.md", b"more")
    grown = run(source, tmp_path / "store")
    assert (fates(grown), grown.documents) == ({"known": 1, "grown": 1, "added": 1}, 4)
    store.put(f"{raw}b.md", b"TEXT")
    with pytest.raises(DataError, match="another content"):
        run(source, tmp_path / "store")
    put(tmp_path / "raw/a.jsonl", lines(some(0, 8)))
    put(tmp_path / "raw/c.md", "more")
    assert fates(run(tmp_path / "raw", tmp_path / "store")) == {"known": 2}, "a tree that was downloaded"


def test_a_known_file_that_cannot_be_read_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/a.md", "text")
    put(tmp_path / "in/b.md", "text b")
    run(tmp_path / "in", tmp_path / "store")
    os.utime(tmp_path / "in/a.md")
    path = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "a.md":
            raise PermissionError(13, "Permission denied")
        return path(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    result = run(tmp_path / "in", tmp_path / "store", dry_run=True)
    assert (fates(result), result.skipped["unreadable"]["count"]) == ({"known": 1}, 1)
