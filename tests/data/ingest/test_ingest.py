"""A whole job: the store holds the content of the files; jobs append, resume and refuse."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmscale.data.ingest import IngestResult, ingest
from fmscale.data.ingest.plan import document_id
from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.data.tokenizers.tokenizer import ByteTokenizer, from_json
from fmscale.errors import ConfigError, DataError, FormatError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import references
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.log.retirement import retire
from fmscale.store.open import open_store
from tests.data.ingest.corpora import (
    commit_bodies,
    contents,
    documents,
    lines,
    mixed,
    parquet,
    put,
    sentences,
)

EOS = ByteTokenizer.eos_id
LETTERS = str.maketrans("0123456789", "ghijklmnop")


def run(paths: Any, store: Path | str, **options: Any) -> IngestResult:
    paths = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return ingest(paths, store=str(store), **{"dataset": "d", "tokenizer": "bytes", "workers": 1, **options})


def texts(store: Path | str, split: str = "train") -> dict[tuple[str, int], str]:
    found = {}
    for source, start, _, _, tokens in documents(open_store(str(store)), "d", split):
        assert tokens[-1] == EOS
        found[source, start] = bytes(tokens[:-1]).decode()
    return found


def test_every_document_arrives_with_its_id_source_and_span(tmp_path: Path) -> None:
    corpus = mixed(tmp_path / "in")
    result = run(corpus, tmp_path / "store")
    found = documents(open_store(str(tmp_path / "store")), "d", "train")
    assert result.documents == len(found) == 40 + 1 + 40 + 10 + 10 + 20 + 20
    assert result.tokens == sum(len(one[4]) for one in found)
    by_place = {(source, start): (stop, identity, tokens) for source, start, stop, identity, tokens in found}
    for (source, start), (stop, identity, tokens) in by_place.items():
        text = bytes(tokens[:-1]).decode()
        assert identity == document_id(source, start)
        assert tokens[-1] == EOS
        data = (corpus / source).read_bytes()
        if source.endswith((".md", ".py")):
            assert (start, data[start:stop].decode()) == (0, text)
        elif source == "rows.jsonl":
            assert json.loads(data[start:stop])["text"] == text
        elif source == "rows.parquet":
            assert pq.read_table(corpus / source)["text"][start].as_py() == text
    assert {source: by_place[source, 0][2] for source in ("rows.arrow",)}["rows.arrow"]
    skipped = {reason: entry["count"] for reason, entry in result.skipped.items()}
    assert skipped == {"vcs": 1, "undecodable": 1, "broken": 1, "empty": 2}
    assert result.skipped["broken"]["first"][0].startswith("rows.jsonl: byte ")
    assert result.skipped["undecodable"]["first"] == ["code/latin.txt: byte 3"]


def test_small_units_change_the_segments_and_not_the_documents(tmp_path: Path) -> None:
    corpus = mixed(tmp_path / "in")
    run(corpus, tmp_path / "one")
    result = run(corpus, tmp_path / "two", unit_bytes=1000)
    assert result.units > 10
    assert documents(open_store(str(tmp_path / "one")), "d", "train") == documents(
        open_store(str(tmp_path / "two")), "d", "train"
    )


def test_trained_tokenizer_is_stored_and_decodes(tmp_path: Path) -> None:
    corpus = mixed(tmp_path / "in")
    result = run(corpus / "docs", tmp_path / "store", tokenizer="bpe:400", bos=True)
    backend = open_store(str(tmp_path / "store"))
    tokenizer = from_json(load_tokenizer(backend, str(result.tokenizer)))
    commit = open_dataset(backend, "d").commits()[0]
    assert (commit.tokenizer, commit.bos, commit.eos) == (
        tokenizer.digest,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    for source, _, _, _, tokens in documents(backend, "d", "train"):
        assert (tokens[0], tokens[-1]) == (commit.bos, commit.eos)
        assert tokenizer.decode(tokens[1:-1]) == (corpus / "docs" / source).read_text()


def test_any_tokenizer_json_is_taken(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some words"] * 3, 300)
    put(tmp_path / "tokenizer.json", tokenizer.to_json())
    put(tmp_path / "in/a.txt", "some words")
    result = run(tmp_path / "in", tmp_path / "store", tokenizer=f"hf:{tmp_path}/tokenizer.json")
    assert result.tokenizer == tokenizer.digest


def test_bos_and_eos_policy(tmp_path: Path) -> None:
    put(tmp_path / "in/a.txt", "ab")
    run(tmp_path / "in", tmp_path / "store", bos=True, eos=False)
    assert documents(open_store(str(tmp_path / "store")), "d", "train")[0][4] == [256, 97, 98]
    commit = open_dataset(open_store(str(tmp_path / "store")), "d").commits()[0]
    assert (commit.bos, commit.eos) == (256, None)


def test_a_tokenizer_file_that_truncates_and_pads_costs_no_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some words"] * 3, 300)
    content = json.loads(tokenizer.to_json())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    strategy = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] = {**strategy, "pad_id": 2, "pad_type_id": 0, "pad_token": "<|pad|>"}
    content["model"]["dropout"] = 0.5
    path = put(tmp_path / "tokenizer.json", json.dumps(content))
    put(tmp_path / "in/a.txt", "some other words " * 50)
    put(tmp_path / "more/b.txt", "some ünïcode words " * 50)
    first = run(tmp_path / "in", tmp_path / "store", tokenizer=str(path))
    assert not run(tmp_path / "in", tmp_path / "store", tokenizer=str(path)).new
    assert run(tmp_path / "more", tmp_path / "store", tokenizer=str(path)).tokenizer == first.tokenizer
    for source, _, _, _, tokens in documents(open_store(str(tmp_path / "store")), "d", "train"):
        text = (tmp_path / ("in" if source == "a.txt" else "more") / source).read_text()
        assert tokens == [*tokenizer.encode_batch([text])[0].tolist(), tokenizer.eos_id]
    stored = load_tokenizer(open_store(str(tmp_path / "store")), str(first.tokenizer))
    assert stored == path.read_bytes()


def test_a_tokenizer_without_eos_is_refused_unless_none_is_wanted(tmp_path: Path) -> None:
    content = json.loads(train_bpe(["some words"] * 3, 300).to_json())
    content["added_tokens"] = []
    content["model"]["vocab"] = {f"{k}x" * 2 if "|" in k else k: v for k, v in content["model"]["vocab"].items()}
    put(tmp_path / "tokenizer.json", json.dumps(content))
    put(tmp_path / "in/a.txt", "some")
    with pytest.raises(ConfigError, match="--no-eos"):
        run(tmp_path / "in", tmp_path / "store", tokenizer=str(tmp_path))
    assert run(tmp_path / "in", tmp_path / "store", tokenizer=str(tmp_path), eos=False).new


def test_heldout_documents_are_a_split_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(sentences("x", 400)))
    result = run(tmp_path / "in", tmp_path / "store", heldout=0.1)
    train, held = texts(tmp_path / "store"), texts(tmp_path / "store", "heldout")
    assert not set(train) & set(held)
    assert sorted([*train.values(), *held.values()]) == sorted(sentences("x", 400))
    assert len(held) == result.splits["heldout"]["documents"]
    assert 15 < len(held) < 70


def test_heldout_documents_do_not_train_the_tokenizer(tmp_path: Path) -> None:
    words = {f"{i}.txt": hashlib.sha256(b"%d" % i).hexdigest().translate(LETTERS)[:8] for i in range(40)}
    for name, word in words.items():
        put(tmp_path / "in" / name, f" {word}" * 50)
    run(tmp_path / "in", tmp_path / "store", heldout=0.3, tokenizer="bpe:3000")
    backend = open_store(str(tmp_path / "store"))
    commit = open_dataset(backend, "d").commits()[0]
    vocabulary = json.loads(load_tokenizer(backend, commit.tokenizer or ""))["model"]["vocab"]
    for split, learnt in (("heldout", False), ("train", True)):
        sources = [one[0] for one in documents(backend, "d", split)]
        assert sources
        assert {f"Ġ{words[source]}" in vocabulary for source in sources} == {learnt}


def test_a_finished_job_says_so_and_adds_nothing(tmp_path: Path) -> None:
    corpus = mixed(tmp_path / "in")
    first = run(corpus, tmp_path / "store", tokenizer="bpe:400", heldout=0.1)
    before = contents(tmp_path / "store")
    for tokenizer in ("bpe:400", None):
        again = run(corpus, tmp_path / "store", tokenizer=tokenizer, heldout=0.1)
        assert (again.new, again.commit, again.job, again.tokens) == (False, 0, first.job, first.tokens)
        assert again.skipped == first.skipped
    assert contents(tmp_path / "store") == before
    assert len(commit_bodies(open_store(str(tmp_path / "store")), "d")) == 1


def test_more_files_are_a_second_commit_with_the_datasets_tokenizer(tmp_path: Path) -> None:
    put(tmp_path / "a/a.txt", "first words " * 20)
    put(tmp_path / "b/b.txt", "second")
    first = run(tmp_path / "a", tmp_path / "store", tokenizer="bpe:300", bos=True)
    for name, options in (("b", {"tokenizer": None}), ("a/a.txt", {"tokenizer": "bpe:300", "heldout": 0.5})):
        result = run(tmp_path / name, tmp_path / "store", **options)
        assert (result.new, result.tokenizer) == (True, first.tokenizer)
    bodies = commit_bodies(open_store(str(tmp_path / "store")), "d")
    assert [body["bos"] for body in bodies] == [0, 0, 0]


def test_another_tokenizer_is_refused_with_both_digests(tmp_path: Path) -> None:
    put(tmp_path / "a/a.txt", "first words " * 20)
    put(tmp_path / "b/b.txt", "second")
    mine = run(tmp_path / "a", tmp_path / "store", tokenizer="bpe:300").tokenizer
    before = contents(tmp_path / "store")
    with pytest.raises(DataError, match=mine) as caught:
        run(tmp_path / "b", tmp_path / "store", tokenizer="bytes")
    assert caught.value.found == ByteTokenizer().digest
    with pytest.raises(DataError, match=mine):
        run(tmp_path / "b", tmp_path / "store", tokenizer="bpe:301")
    with pytest.raises(DataError, match="have no BOS"):
        run(tmp_path / "b", tmp_path / "store", tokenizer=None, bos=True)
    with pytest.raises(DataError, match="have a EOS"):
        run(tmp_path / "b", tmp_path / "store", tokenizer=None, eos=False)
    assert contents(tmp_path / "store") == before


def test_a_retired_job_can_be_ingested_again(tmp_path: Path) -> None:
    put(tmp_path / "in/a.txt", "text")
    first = run(tmp_path / "in", tmp_path / "store")
    backend = open_store(str(tmp_path / "store"))
    retire(open_dataset(backend, "d").log, [0], lambda entry: references("d", entry.body))
    again = run(tmp_path / "in", tmp_path / "store")
    assert again.new
    assert again.job != first.job
    assert [body["job"] for body in commit_bodies(backend, "d")] == [again.job]


def test_an_empty_corpus_is_an_error_that_makes_no_dataset(tmp_path: Path) -> None:
    for name, data in (("in/empty.txt", b""), ("in/x.jsonl", b"\n\n"), ("in/y.txt", b"a\0b")):
        put(tmp_path / name, data)
    with pytest.raises(DataError, match="hold no document") as caught:
        run(tmp_path / "in", tmp_path / "store")
    assert caught.value.found == "1 binary (y.txt), 2 empty (empty.txt; x.jsonl)"
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="nothing to ingest"):
        run(tmp_path / "none", tmp_path / "store")
    with pytest.raises(DataError, match="no dataset"):
        open_dataset(open_store(str(tmp_path / "store")), "d")
    with pytest.raises(DataError, match="hold no document"):
        run(tmp_path / "in", tmp_path / "other", tokenizer="bpe:300")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("x.jsonl", b'{"text": "good"}\n{bad\n', "broken"),
        ("x.parquet", b"nonsense", "broken"),
        ("x.txt.gz", b"nonsense", "broken"),
    ],
)
def test_damage_is_skipped_and_counted_but_an_error_with_strict(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    put(tmp_path / "in" / name, data)
    put(tmp_path / "in/good.txt", "good")
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path / "in", tmp_path / "store", strict=True)
    assert name in str(caught.value.found)
    result = run(tmp_path / "in", tmp_path / "store")
    assert result.new
    assert sum(entry["count"] for entry in result.skipped.values()) == 1
    assert "good" in texts(tmp_path / "store").values()


def test_strict_sees_what_an_earlier_run_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/latin.txt", b"caf\xe9")
    put(tmp_path / "in/good.txt", "good")
    with monkeypatch.context() as patch:
        patch.setattr("fmscale.data.ingest.commit_job", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "in", tmp_path / "store")
    with pytest.raises(DataError, match="not UTF-8"):
        run(tmp_path / "in", tmp_path / "store", strict=True)


def test_field_paths_and_their_errors(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(["one", "two"], "meta.body"))
    run(tmp_path / "a.jsonl", tmp_path / "store", field="meta.body")
    assert list(texts(tmp_path / "store").values()) == ["one", "two"]
    with pytest.raises(DataError, match="--field"):
        run(tmp_path / "a.jsonl", tmp_path / "other", field="body")
    with pytest.raises(DataError, match=r"1 broken \(a.parquet: no column txt among text; did you mean 'text'\?"):
        run(parquet(tmp_path / "a.parquet", ["x"]), tmp_path / "other", field="txt")


def test_format_can_be_said(tmp_path: Path) -> None:
    put(tmp_path / "in/a.log", lines(["one"]))
    run(tmp_path / "in", tmp_path / "store", format="jsonl")
    assert list(texts(tmp_path / "store").values()) == ["one"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "jsonl"),
        ({"heldout": 1.0}, "below 1"),
        ({"heldout": float("nan")}, "below 1"),
        ({"field": "a..b"}, "path of names"),
        ({"workers": 0}, "many writers"),
        ({"unit_bytes": 0}, "one byte"),
        ({"tokenizer": "bpe:7"}, "vocabulary size"),
        ({"tokenizer": "gpt2"}, "nothing is downloaded"),
        ({"store": "memory://x", "workers": 2}, "one process"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    put(tmp_path / "in/a.txt", "text")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "in", **{"store": tmp_path / "store", **options})


def test_the_store_among_its_inputs_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "text")
    assert run(tmp_path, tmp_path / "runs/store").documents == 1
    put(tmp_path / "b.txt", "text")
    result = run(tmp_path, tmp_path / "runs/store")
    assert (result.documents, result.skipped["store"]["count"]) == (2, 1)


def test_ingest_into_every_kind_of_store_from_every_kind(store_url: str, store: Backend) -> None:
    base, mark, query = store_url.partition("?")
    inputs = store_url
    for i in range(8):
        store.put(f"raw/{i}.txt", f"text {i}".encode())
    if not base.startswith("memory://"):
        inputs, store_url = f"{base}/raw{mark}{query}", f"{base}/out{mark}{query}"
    result = run(inputs, store_url, unit_bytes=24)
    found = texts(store_url)
    assert (result.documents, result.units) == (8, 2)
    assert {Path(source).name: text for (source, _), text in found.items()} == {
        f"{i}.txt": f"text {i}" for i in range(8)
    }


def test_types_follow_the_vocabulary(tmp_path: Path) -> None:
    vocabulary = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(70_000)}, "unk_token": "w0"}
    plain: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "post_processor": None,
        "decoder": None,
    }
    content = {**plain, "pre_tokenizer": {"type": "Whitespace"}, "model": vocabulary}
    put(tmp_path / "tokenizer.json", json.dumps(content))
    put(tmp_path / "in/a.txt", "w69999 w3")
    run(tmp_path / "in", tmp_path / "store", tokenizer=str(tmp_path), eos=False)
    backend = open_store(str(tmp_path / "store"))
    assert open_dataset(backend, "d").commits()[0].dtype == "uint32"
    assert documents(backend, "d", "train")[0][4] == [69999, 3]


def test_long_documents_and_many(tmp_path: Path) -> None:
    long = "".join(f"line {i} of a long document\n" for i in range(40_000))
    put(tmp_path / "in/long.txt", long)
    table = pa.table({"text": [f"row {i}" for i in range(3000)]})
    pq.write_table(table, tmp_path / "in/many.parquet", row_group_size=1000)
    result = run(tmp_path / "in", tmp_path / "store", tokenizer="bpe:300")
    backend = open_store(str(tmp_path / "store"))
    tokenizer = from_json(load_tokenizer(backend, str(result.tokenizer)))
    found = {one[0]: one[4] for one in documents(backend, "d", "train")}
    assert tokenizer.decode(found["long.txt"][:-1]) == long
    assert result.documents == 3001
    assert np.array(found["many.parquet"]).max() < tokenizer.vocab_size


def test_plans_and_records_of_a_later_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/a.txt", "text")
    with monkeypatch.context() as patch:
        patch.setattr("fmscale.data.ingest.commit_job", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "in", tmp_path / "store")
    for path in (tmp_path / "store/datasets/d/jobs").rglob("*.json"):
        kept = path.read_bytes()
        path.write_bytes(kept.replace(b'"format_version":1,', b'"format_version":9,'))
        assert path.read_bytes() != kept
        with pytest.raises(FormatError, match="upgrade"):
            run(tmp_path / "in", tmp_path / "store")
        path.write_bytes(kept)
    assert run(tmp_path / "in", tmp_path / "store").resumed == 1


def test_a_lost_tokenizer_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in/a.txt", "text")
    digest = run(tmp_path / "in", tmp_path / "store").tokenizer
    (tmp_path / f"store/tokenizers/{digest}.json").unlink()
    put(tmp_path / "in/b.txt", "text")
    with pytest.raises(ObjectNotFound, match=digest):
        run(tmp_path / "in", tmp_path / "store", tokenizer=None)
