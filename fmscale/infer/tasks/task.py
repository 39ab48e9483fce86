"""Tasks: a YAML file with templates, and documents in it or in a JSON Lines file beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fmscale.config.checks import InvalidField, at_least
from fmscale.config.reader.convert import convert
from fmscale.config.reader.load import read_extended
from fmscale.config.reader.tree import INTEGER, NUMBER, Items, Scalar, Tree, YamlTable
from fmscale.config.schema import as_tree
from fmscale.errors import DataError
from fmscale.infer.prompt.answers import AnswerConfig
from fmscale.infer.prompt.program import find_shipped
from fmscale.infer.sampling import Sampling
from fmscale.store.digest import canonical_json, metadata_digest


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig:
    """Examples before each question."""

    count: int
    """Number of examples."""
    documents: str | None = None
    """JSON Lines of the examples; None takes the task's own documents, without the document that is asked."""
    draw: Literal["random", "first"] = "random"
    """Drawn for each document by (seed, its number), or the first documents."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        at_least(self, 1, "count")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The part that all kinds of tasks have in common. Templates are Jinja's, over the fields of a document."""

    text: str
    """Template of what the model reads."""
    documents: str | None = None
    """JSON Lines file beside the task; None for documents in the task's own YAML, as a list."""
    description: str = ""
    """Text before everything: the system message of a chat."""
    delimiter: str = " "
    """Text between a question and its answer, in plain form."""
    separator: str = "\n\n"
    """Text between examples, in plain form."""
    examples: ExamplesConfig | None = None
    """Examples before each question; None for none."""


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(_Task):
    """Multiple choice: the likeliest continuation is the answer."""

    kind: ClassVar[str] = "choice"
    choices: tuple[str, ...]
    """Templates of the choices; a template that is an expression, as `{{ options }}`, may be a list of them."""
    target: str
    """Template of the right choice: its number, counted from 0, or its text."""


@dataclass(frozen=True, kw_only=True)
class GenerateTask(_Task):
    """A generated answer that must equal the right answer."""

    kind: ClassVar[str] = "generate"
    target: str
    """Template of the right answer; an expression may be a list of right answers."""
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    """The way from a reply to its answer."""
    max_tokens: int = 64
    """New tokens of a reply."""
    stop: tuple[str, ...] = ()
    """Texts before which a reply ends."""


@dataclass(frozen=True, kw_only=True)
class RollingTask(_Task):
    """Perplexity of texts, each token predicted from those before it."""

    kind: ClassVar[str] = "rolling"

    def __post_init__(self) -> None:
        _no_examples(self.examples)


@dataclass(frozen=True, kw_only=True)
class CodeTask(_Task):
    """Python programs that must pass tests."""

    kind: ClassVar[str] = "code"
    tests: str
    """Template of the code behind the text and the reply; the program must end with status 0."""
    samples: int = 1
    """Replies to each document."""
    k: tuple[int, ...] = (1,)
    """The k of pass@k."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    seed: int = 0
    """Seed of the draws."""
    max_tokens: int = 256
    """New tokens of a reply."""
    stop: tuple[str, ...] = ("\nclass ", "\ndef ", "\nif ", "\nprint(")
    """Texts before which a reply ends."""
    seconds: int = 5
    """CPU seconds of a program."""

    def __post_init__(self) -> None:
        _no_examples(self.examples)
        at_least(self, 1, "samples", "seconds")
        Sampling(temperature=self.temperature, seed=self.seed)
        if not self.k or not 1 <= min(self.k) <= max(self.k) <= self.samples:
            raise InvalidField("k", "must be 1 to samples", found=self.k, remedy=f"samples is {self.samples}.")


def _no_examples(examples: ExamplesConfig | None) -> None:
    if examples is not None:
        raise InvalidField("examples", "belong to choice and generate", found=examples, remedy="Remove them.")


TaskConfig = ChoiceTask | GenerateTask | RollingTask | CodeTask
Fields = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedTask:
    """A task with its documents."""

    name: str
    config: TaskConfig
    documents: Sequence[Fields]
    places: Sequence[str]
    """file:line of each document, or its number in the task."""
    pool: Sequence[Fields] | None = None
    """Documents of the examples; None for the task's own."""

    @property
    def digest(self) -> str:
        """Digest of the settings and of all documents."""
        parts = {"config": as_tree(self.config), "kind": self.config.kind, "documents": list(self.documents)}
        return metadata_digest(canonical_json({**parts, "pool": list(self.pool or ())}))


def load_task(name: str) -> LoadedTask:
    """The task in a YAML file, or a shipped task.

    Raises ConfigError with file:line for a wrong key or value, DataError for documents that cannot be read.
    """
    path = Path(find_shipped("task", name))
    tree = read_extended(path)
    entries = dict(tree.entries)
    inline = entries.get("documents")
    if isinstance(inline, Items):
        del entries["documents"]
    if isinstance(choices := entries.get("choices"), Scalar):
        entries["choices"] = Items(items=(choices,), place=choices.place)
    config: TaskConfig = convert(replace(tree, entries=entries), TaskConfig, "", {})
    if isinstance(inline, Items):
        documents: list[Fields] = [_plain(item) for item in inline.items]
        places = [item.place for item in inline.items]
        _require_objects(documents, places)
    else:
        documents, places = _lines(path, config.documents)
    examples = config.examples
    pool = _lines(path, examples.documents)[0] if examples and examples.documents else None
    return LoadedTask(name=path.stem, config=config, documents=documents, places=places, pool=pool)


def _lines(task: Path, name: str | None) -> tuple[list[Fields], list[str]]:
    """Documents of a JSON Lines file beside the task, and their places."""
    if name is None:
        raise DataError(
            f"{task}: the task has no documents", remedy="Give documents: a JSON Lines file, or a list in the task."
        )
    path = task.parent / name
    documents: list[Fields] = []
    places: list[str] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                places.append(f"{path}:{number}")
                documents.append(json.loads(line))
    except OSError as error:
        raise DataError(
            f"{path}: the documents cannot be read: {error.strerror}",
            remedy=f"The path counts from {task.parent}.",
        ) from error
    except (ValueError, RecursionError) as error:
        place = places[-1] if places else str(path)
        raise DataError(
            f"{place}: a line is no JSON", found=str(error), remedy="Correct or remove the line."
        ) from error
    _require_objects(documents, places)
    return documents, places


def _require_objects(documents: Sequence[Any], places: Sequence[str]) -> None:
    if not documents:
        raise DataError("The task has no documents", found=0, remedy="Give a document or more.")
    for document, place in zip(documents, places, strict=True):
        if not isinstance(document, dict):
            raise DataError(
                f"{place}: a document is an object of fields", found=document, remedy='Such as {"question": "1 + 1"}.'
            )


def _plain(tree: Tree) -> Any:
    """The value of a YAML tree by JSON's types."""
    if isinstance(tree, YamlTable):
        return {key: _plain(value) for key, value in tree.entries.items()}
    if isinstance(tree, Items):
        return [_plain(item) for item in tree.items]
    if tree.quoted:
        return tree.text
    words = {"true": True, "false": False}
    if tree.null or tree.text in words:
        return words.get(tree.text)
    if INTEGER.fullmatch(tree.text):
        return int(tree.text)
    return float(tree.text) if NUMBER.fullmatch(tree.text) else tree.text
