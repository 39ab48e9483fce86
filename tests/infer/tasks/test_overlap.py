"""N-grams that a task has in common with a training dataset."""

from pathlib import Path

import pytest

from fmscale.data.ingest import ingest
from fmscale.data.views.mask import document_id, find_documents, make_mask
from fmscale.errors import ConfigError, DataError
from fmscale.infer.tasks import find_overlap, load_task
from fmscale.infer.tasks.overlap import words_of
from fmscale.infer.tasks.task import LoadedTask
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.open import open_store
from tests.infer.task_run import write_task

ASKED = "Where did the old captain hide the brass key before he left the harbour town for ever?"
CLEAN = "A question about quite different things that no document of the training data has in it at all."
SHORT = "Too short to tell."


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LoadedTask:
    text = "kind: generate\ntext: '{{ q }}'\ntarget: '{{ a }}'\ndocuments: d.jsonl\n"
    lines = "".join(f'{{"q": "{q}", "a": "{a}"}}\n' for q, a in ((ASKED, "in a boot"), (CLEAN, "no"), (SHORT, "x")))
    return load_task(write_task(tmp_path_factory.mktemp("overlap"), "t", text, d=lines))


def stored(folder: Path, texts: dict[str, str], **options: object) -> Dataset:
    for name, text in texts.items():
        (folder / name).write_text(text)
    ingest([str(folder)], store=str(folder / "store"), dataset="docs", workers=1, **options)  # type: ignore[arg-type]
    return open_dataset(open_store(str(folder / "store")), "docs")


def test_words_are_compared_as_in_gpt3() -> None:
    assert words_of("Don't  stop,\nMÜLLER-Lüdenscheidt_2!") == ["dont", "stop", "müllerlüdenscheidt2"]


def test_copies_are_counted_and_named(task: LoadedTask, tmp_path: Path) -> None:
    words = ASKED.split()
    texts = {
        "copy.txt": "x " * 500 + ASKED.upper().replace(" ", " ,\n") + " IN A... boot! " + "y " * 500,
        "part.txt": "Before: " + " ".join(words[:13]) + " and so on, " * 40,
        "near.txt": " ".join(words[:12]) + " nothing " + " ".join(words[12:]),
        "far.txt": "the quick brown fox " * 30,
    }
    dataset = stored(tmp_path, texts, tokenizer="bytes")
    result = find_overlap(dataset, task)
    assert (result.asked, result.documents, len(result.short)) == (3, 4, 1)
    assert {Path(one.source).name: one.ngrams for one in result.found} == {
        "copy.txt": len(words) + 3 - 12,
        "part.txt": 1,
    }
    (found,) = {one.question for one in result.found}
    assert found.endswith("d.jsonl:1")
    # the least n-gram, GPT-3's: near.txt too
    assert len(find_overlap(dataset, task, ngram=8).ids) == 3
    documents = find_documents(dataset, ids=[document_id(id) for id in result.ids])
    dataset.append_masks({"train": make_mask(dataset, documents)}, "test")
    masked = find_overlap(open_dataset(dataset.backend, "docs"), task)
    assert (masked.documents, masked.found) == (2, [])


def test_records_are_read_by_all_their_text(task: LoadedTask, tmp_path: Path) -> None:
    lines = [
        f'{{"messages": [{{"role": "user", "content": "Hi. {ASKED}"}}, {{"role": "assistant", "content": "?"}}]}}\n',
        '{"messages": [{"role": "user", "content": "no"}]}\n',
    ]
    result = find_overlap(stored(tmp_path, {"c.jsonl": "".join(lines)}, kind="records"), task)
    assert [one.ngrams for one in result.found] == [len(ASKED.split()) - 12]
    assert result.documents == 2


def test_questions_shorter_than_an_ngram_count_as_a_whole(tmp_path: Path) -> None:
    text = "kind: rolling\ntext: '{{ t }}'\ndocuments: [{t: one two three four five six seven eight nine}]\n"
    task = load_task(write_task(tmp_path / "task", "t", text))
    near, copy = "one two three four five six seven eight ten", "zero one two three four five six seven eight nine ten"
    (tmp_path / "data").mkdir()
    dataset = stored(tmp_path / "data", {"near.txt": near, "copy.txt": copy}, tokenizer="bytes")
    assert [Path(one.source).name for one in find_overlap(dataset, task).found] == ["copy.txt"]


def test_what_cannot_be_compared_is_refused(task: LoadedTask, tmp_path: Path) -> None:
    dataset = stored(tmp_path, {"a.txt": "text"}, tokenizer="bytes")
    with pytest.raises(ConfigError, match="too short to tell a copy"):
        find_overlap(dataset, task, ngram=3)
    with pytest.raises(DataError, match="no split of this name"):
        find_overlap(dataset, task, split="test")
