"""Questions of a task, the texts that a model reads for them, and the right answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fmscale.errors import ConfigError, DataError
from fmscale.infer.likelihoods import Pair
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.examples import drawn
from fmscale.infer.prompt.forms import Prompt, Turns
from fmscale.infer.prompt.templates import fill
from fmscale.infer.tasks.task import ChoiceTask, CodeTask, Fields, GenerateTask, LoadedTask


class Question(NamedTuple):
    """A document of a task, with its templates rendered."""

    where: str
    text: str
    choices: list[str]
    right: list[str]
    """Right answers; of a code task its tests."""
    gold: int
    """Number of the right choice; -1 for other kinds of tasks."""


def questions(task: LoadedTask, documents: Sequence[Fields], places: Sequence[str]) -> list[Question]:
    """The questions of documents. Raises ConfigError for a template that fails, DataError for a document without a
    choice or a right answer.
    """
    config = task.config
    keys: dict[str, tuple[str, ...]] = {"text": (config.text,)}
    if isinstance(config, ChoiceTask):
        keys |= {"choices": config.choices, "target": (config.target,)}
    elif isinstance(config, GenerateTask):
        keys |= {"target": (config.target,)}
    elif isinstance(config, CodeTask):
        keys |= {"tests": (config.tests,)}
    places = [f"task {task.name}, {place}" for place in places]
    found = []
    for place, document in zip(places, documents, strict=True):
        made = {key: [fill(f"{place}, {key}", one, document) for one in keys[key]] for key in keys}
        text, choices = _text(made["text"][0], f"{place}, text"), _choices(made.get("choices"), place)
        right = [] if isinstance(config, ChoiceTask) else made.get("target", made.get("tests", []))
        gold = _gold(made["target"][0], choices, place) if isinstance(config, ChoiceTask) else -1
        if len(right) == 1 and isinstance(right[0], list):
            right = right[0]
        right = [choices[gold]] if gold >= 0 else [_text(answer, f"{place}, target") for answer in right]
        if isinstance(config, GenerateTask) and not any(right):
            raise DataError(f"{place}: the right answer is empty", found=right, remedy="Give target a value.")
        found.append(Question(place, text, choices, right, gold))
    return found


def turns_of(task: LoadedTask, asked: Sequence[Question]) -> list[Turns]:
    """The first questions of a task, each with its examples. Raises as `questions`, and for too few documents."""
    config, own = task.config, task.pool is None
    pool = task.documents if task.pool is None else task.pool
    chosen: list[list[int]] = [[] for _ in asked]
    if (examples := config.examples) is not None:
        for number in range(len(asked)):
            without = number if own else None
            if examples.draw == "random":
                chosen[number] = drawn(len(pool), examples.count, examples.seed, number, without)
            else:
                chosen[number] = [i for i in range(len(pool)) if i != without][: examples.count]
            if len(chosen[number]) < examples.count:
                raise ConfigError(
                    f"Task {task.name} has too few documents for its examples",
                    found=examples.count,
                    remedy=f"Take {len(chosen[number])} or fewer.",
                )
    used = sorted({i for numbers in chosen for i in numbers})
    places = [task.places[i] if own else f"example {i}" for i in used]
    shown = dict(zip(used, questions(task, [pool[i] for i in used], places), strict=True))
    return [
        Turns(
            where=question.where, question=question.text, system=config.description,
            examples=[(shown[i].text, shown[i].right[0]) for i in numbers],
            delimiter=config.delimiter, separator=config.separator,
        )
        for question, numbers in zip(asked, chosen, strict=True)
    ]  # fmt: skip


def choice_pairs(trained: TrainedModel, prompt: Prompt, question: Question, delimiter: str) -> list[Pair]:
    """The context with each choice. White space at the end of the context goes over to the choices, and a choice has
    the tokens that the whole text has behind those of the context, as in lm-eval.
    """
    bare = prompt.text.rstrip()
    space = prompt.text[len(bare) :]
    start = Prompt(bare, prompt.typed)
    context = start.encode(trained) if bare else [first_token(trained)]
    pairs = []
    for choice in question.choices:
        text = space + (delimiter if prompt.typed is None else "") + choice
        tokens = start.encode(trained, text)
        rest = tokens[len(context) :] if bare else tokens[trained.bos is not None :]
        if not bare and rest[:1] == context and len(rest) > 1:
            rest = rest[1:]
        if not rest:
            raise DataError(
                f"{question.where}: a choice adds no token to the text",
                found=choice,
                remedy="Give it a text, or the text another end.",
            )
        pairs.append(Pair(tuple(context), tuple(rest)))
    return pairs


def first_token(trained: TrainedModel) -> int:
    """Token before the first token of a text: BOS, or else EOS."""
    first = trained.eos if trained.bos is None else trained.bos
    if first is None:
        raise ConfigError(
            f"The data of run {trained.run} has neither BOS nor EOS, and a text without context needs either",
            remedy="Begin the text with something to read, or train with an EOS.",
        )
    return first


def _choices(values: list[Any] | None, place: str) -> list[str]:
    values = values[0] if values and len(values) == 1 and isinstance(values[0], list) else values or []
    choices = [_text(value, f"{place}, choices") for value in values]
    if len(choices) == 1 or "" in choices:
        raise DataError(f"{place}: a choice needs two texts or more", found=choices, remedy="Give more choices.")
    return choices


def _gold(value: Any, choices: list[str], place: str) -> int:
    """Number of the right choice, given as its text or its number."""
    if isinstance(value, str):
        text = value.strip()
        value = choices.index(value) if value in choices else int(text) if text.isdecimal() else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise DataError(
            f"{place}: the right choice is none of the choices",
            found=value,
            remedy=f"Give 0 to {len(choices) - 1}, or the text of a choice.",
        )
    return value


def _text(value: Any, where: str) -> str:
    if isinstance(value, (list, dict)) or value is None:
        raise DataError(f"{where}: must be a text", found=value, remedy="Use a template that gives a text.")
    return str(value)
