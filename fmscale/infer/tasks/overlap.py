"""Documents of a task that a training dataset contains, in part: n-grams of words that both have (decontamination).

Words as in GPT-3 (Brown et al., arXiv 2005.14165, appendix C): lower case, without punctuation, parted at white space.
A task document shorter than n words counts as a whole, from LEAST words on. Memory grows with the task, not with the
dataset.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.data.views.mask import own_masked
from fmscale.errors import ConfigError, DataError
from fmscale.infer.heldout import stored
from fmscale.infer.tasks.prompts import questions
from fmscale.infer.tasks.task import LoadedTask
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.datasets.tokenizers import load_tokenizer

NGRAM = 13
"""Words of an n-gram by default, GPT-3's longest."""
LEAST = 8
"""Words of the shortest task document that is looked for, GPT-3's shortest n-gram."""

_WORDS = re.compile(r"[^\s]+")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


class Found(NamedTuple):
    """A document of the dataset that shares n-grams with a document of the task."""

    question: str
    """The task's document."""
    id: str
    """Id of the dataset's document or record, hexadecimal."""
    source: str
    ngrams: int
    """N-grams that both have, each place in the dataset's document counted."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """N-grams that a task has in common with a dataset."""

    found: list[Found]
    asked: int
    short: list[str]
    """Task documents that are too short to be looked for."""
    documents: int
    """Documents or records of the dataset that were read."""

    @property
    def ids(self) -> list[str]:
        """Ids of the dataset's documents that contain documents of the task."""
        return list(dict.fromkeys(one.id for one in self.found))


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return _WORDS.findall(_PUNCTUATION.sub("", text.lower()))


def find_overlap(
    dataset: Dataset,
    task: LoadedTask,
    *,
    split: str = "train",
    ngram: int = NGRAM,
    advance: Callable[[int], object] = lambda documents: None,
) -> Overlap:
    """The n-grams of words that the task's documents (text and right answers) have in common with a split.

    Documents that the dataset's own masks leave out are not read. A record's text is all text in it; of a rendered
    record, also its tokens. Raises ConfigError for a small n, DataError for a dataset without the split.
    """
    if ngram < LEAST:
        raise ConfigError("n-grams are too short to tell a copy", found=ngram, remedy=f"Take {LEAST} or more.")
    asked = questions(task, task.documents, task.places)
    known: dict[tuple[str, ...], list[str]] = {}
    short = []
    for question in asked:
        words = words_of(" ".join((question.text, *(question.right if task.config.kind != "code" else ()))))
        size = min(ngram, len(words))
        if size < LEAST:
            short.append(question.where)
            continue
        for gram in {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}:
            known.setdefault(gram, []).append(question.where)
    sizes = sorted({len(gram) for gram in known})
    vocabulary = {word for gram in known for word in gram}
    commits = [commit for commit in dataset.commits() if split in commit.manifests]
    if not commits:
        raise DataError(f"Dataset {dataset.name} has no split of this name", found=split, remedy="Name its split.")
    masked = own_masked(dataset, split)
    found, count = [], 0
    for commit in commits:
        for id, source, text in _texts(dataset.backend, commit, split, masked.get(commit.number)):
            count += 1
            advance(1)
            hits: dict[str, int] = {}
            for run in _runs(words_of(text), vocabulary):
                for size in sizes:
                    for i in range(len(run) - size + 1):
                        for owner in known.get(tuple(run[i : i + size]), ()):
                            hits[owner] = hits.get(owner, 0) + 1
            found += [Found(owner, id, source, number) for owner, number in hits.items()]
    return Overlap(found=found, asked=len(asked), short=short, documents=count)


def _runs(words: Sequence[str], vocabulary: set[str]) -> Iterator[list[str]]:
    """Successive words that the task has, LEAST or more: only there an n-gram of the task can be."""
    for ours, run in groupby(words, vocabulary.__contains__):
        if ours and len(found := list(run)) >= LEAST:
            yield found


def _texts(backend: Backend, commit: Commit, split: str, masked: Any) -> Iterator[tuple[str, str, str]]:
    """Id, source and text of each document or record of a commit's split."""
    name = commit.tokenizer or commit.body.get("extra", {}).get("tokenizer")
    tokenizer = from_json(load_tokenizer(backend, name), f"tokenizer {name}") if isinstance(name, str) else None
    for named, content in stored(backend, commit, split, masked):
        records = isinstance(content, dict)
        assert records or tokenizer is not None, "tokens have a tokenizer"
        text = _record_text(content, tokenizer) if tokenizer is None or records else tokenizer.decode(content)
        yield named["id"].hex(), named["source"], text


def _record_text(record: Any, tokenizer: Any) -> str:
    """All text in a record, and the text of a rendered record's tokens."""
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        tokens = record.get("tokens")
        decoded = tokenizer.decode(tokens) if tokenizer is not None and isinstance(tokens, list) else ""
        return " ".join([decoded, *(_record_text(value, None) for value in record.values())])
    return " ".join(_record_text(value, None) for value in record) if isinstance(record, (list, tuple)) else ""
