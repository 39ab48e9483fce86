"""Prompt programs: zero-shot, few-shot, step by step, and votes (self-consistency), as data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fmscale.config.checks import at_least, not_empty
from fmscale.config.reader.load import find_config, load_section, read_extended
from fmscale.errors import ConfigError
from fmscale.infer.generate import Completion
from fmscale.infer.likelihoods import Pair, loglikelihoods
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.answers import AnswerConfig, majority, parse_answer
from fmscale.infer.prompt.complete import complete
from fmscale.infer.prompt.examples import of_dataset
from fmscale.infer.prompt.forms import Form, Turns, chat_of, make_prompts
from fmscale.infer.prompt.templates import fill
from fmscale.infer.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RecordExamples:
    """Examples from a dataset of records in the run's store."""

    dataset: str
    """The dataset."""
    count: int
    """Number of examples."""
    split: str = "train"
    """Its split."""
    seed: int = 0
    """Seed of the choice: example i is a function of (seed, i)."""


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """A way to ask a model. Templates are Jinja's, over the values of a question or an example."""

    prompt: str = "{{ question }}"
    """Template of a question."""
    system: str = ""
    """Text before everything: the system message of a chat, or the begin of a plain text."""
    suffix: str = ""
    """Text behind the question, but not behind the examples: "Let's think step by step."."""
    answer: str = "{{ answer }}"
    """Template of an example's answer."""
    examples: tuple[dict[str, str], ...] = ()
    """Values of each example."""
    records: RecordExamples | None = None
    """More examples, from records."""
    delimiter: str = " "
    """Text between a question and its answer, in plain form."""
    separator: str = "\n\n"
    """Text between examples, in plain form."""
    form: Form = "auto"
    """Plain text, or the run's chat template; auto takes the template of a run that has a template."""
    parser: AnswerConfig = field(default_factory=AnswerConfig)
    """The way from a reply to its answer."""
    max_tokens: int = 128
    """New tokens of a reply."""
    stop: tuple[str, ...] = ()
    """Texts before which a reply ends."""
    temperature: float = 0.0
    """0 takes the likeliest token; votes need about 0.7."""
    samples: int = 1
    """Replies whose answers vote."""
    seed: int = 0
    """Seed of the draws."""
    values: dict[str, str] = field(default_factory=dict)
    """Values of names that a question does not give."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_tokens", "samples")
        not_empty("prompt", self.prompt, 'For example prompt: "{{ question }}".')
        Sampling(temperature=self.temperature, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Answer of a model to a question."""

    prompt: str
    """The whole text that it read."""
    replies: list[str]
    parsed: list[str | None]
    votes: dict[str, int]
    answer: str | None
    """The answer of most replies."""


def load_program(name: str) -> ProgramConfig:
    """The program in a YAML file, or a shipped program. Raises ConfigError with file:line."""
    return load_section(ProgramConfig, read_extended(find_shipped("program", name)))


def find_shipped(folder: str, name: str) -> Any:
    """The file `name`, or the shipped file of that name in a folder of configs. Raises ConfigError."""
    try:
        return find_config(name)
    except ConfigError:
        return find_config(f"{folder}/{name}")


def run_program(
    trained: TrainedModel,
    program: ProgramConfig,
    questions: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] = (),
    threads: int | None = None,
) -> list[Answered]:
    """The model's answer to each question, given by its values.

    `names` are the questions' names in messages. Raises ConfigError for a template that fails, or a prompt that is too
    long.
    """
    names = names or [f"question {i}" for i in range(len(questions))]
    shown: list[Mapping[str, Any]] = list(program.examples)
    if program.records is not None:
        given = program.records
        shown += of_dataset(trained.backend, given.dataset, given.split, given.count, given.seed)
    examples = [
        (str(fill(f"example {i}", program.prompt, values)), str(fill(f"example {i}", program.answer, values)))
        for i, values in enumerate(shown)
    ]
    texts = [
        str(fill(name, program.prompt, {**program.values, **values}))
        for name, values in zip(names, questions, strict=True)
    ]
    turns = [
        Turns(
            where=name, question=text + program.suffix, system=program.system, examples=examples,
            delimiter=program.delimiter, separator=program.separator,
        )
        for name, text in zip(names, texts, strict=True)
    ]  # fmt: skip
    chat = chat_of(trained, program.form)
    prompts = make_prompts(turns, chat)
    ids = [prompt.encode(trained) for prompt in prompts]
    sampling = Sampling(temperature=program.temperature, seed=program.seed)
    replies = complete(
        trained, ids, max_tokens=program.max_tokens, stop=program.stop, sampling=sampling, samples=program.samples,
        ends=chat.ends if chat else None, names=names, threads=threads,
    )  # fmt: skip
    results = []
    for prompt, tokens, group in zip(prompts, ids, replies, strict=True):
        parsed = [parse_answer(reply.text, program.parser) for reply in group]
        votes = {answer: parsed.count(answer) for answer in dict.fromkeys(parsed) if answer is not None}
        weights = [1.0] * len(group)
        if list(votes.values()).count(max(votes.values(), default=0)) > 1:
            weights = _probabilities(trained, tokens, group, threads)
        answer = majority(parsed, weights)
        texts_ = [reply.text for reply in group]
        results.append(Answered(prompt=prompt.text, replies=texts_, parsed=parsed, votes=votes, answer=answer))
    return results


def with_values(program: ProgramConfig, pairs: Sequence[str]) -> ProgramConfig:
    """The program with KEY=VALUE texts over its values. Raises ConfigError for a text without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError("A value is set as KEY=VALUE", found=pair, remedy="For example --set question='2+2?'.")
    return replace(program, values={**program.values, **dict(pair.split("=", 1) for pair in pairs)})


def _probabilities(
    trained: TrainedModel, prompt: Sequence[int], replies: Sequence[Completion], threads: int | None
) -> list[float]:
    """Probability of each reply's tokens at temperature 1."""
    ended = [[*reply.tokens, *([] if reply.end is None else [reply.end])] for reply in replies]
    pairs = [Pair(tuple(prompt), tuple(tokens)) for tokens in ended]
    return [math.exp(found.nats) for found in loglikelihoods(trained.model, pairs, threads=threads)]
