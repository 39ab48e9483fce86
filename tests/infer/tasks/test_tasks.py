"""Tasks on a model: results by document, at any batch, and refusals by place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import ConfigError, DataError, FmscaleError
from fmscale.infer.likelihoods import Pair, loglikelihoods
from fmscale.infer.load import TrainedModel, open_trained
from fmscale.infer.prompt.forms import Prompt
from fmscale.infer.prompt.program import ProgramConfig
from fmscale.infer.tasks import TaskResult, evaluate_task, load_task
from fmscale.infer.tasks.prompts import Question, choice_pairs, questions, turns_of
from tests.infer.task_run import task_run, write_task

CHOICE = """
kind: choice
text: "{{ q }}"
choices: "{{ options }}"
target: "{{ a }}"
"""
DOCUMENTS: list[dict[str, Any]] = [
    {"q": "The dog?", "options": ["barks", "flies away", "é"], "a": 0},
    {"q": "A fish lives in", "options": ["water", "a tree"], "a": "water"},
    {"q": "Document 3: the quick brown", "options": ["fox", "naïve."], "a": 1},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return open_trained(task_run(tmp_path_factory.mktemp("tasks")))


def lines(documents: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


def evaluated(trained: TrainedModel, path: str, **options: object) -> TaskResult:
    return evaluate_task(trained, load_task(path), **options)  # type: ignore[arg-type]


def test_a_choice_is_the_likeliest_continuation_in_the_tokens_of_the_whole(
    trained: TrainedModel, tmp_path: Path
) -> None:
    path = write_task(tmp_path, "t", CHOICE + "documents: d.jsonl\n", d=lines(DOCUMENTS))
    result = evaluated(trained, path)
    for row, document in zip(result.documents, DOCUMENTS, strict=True):
        context = trained.encode(str(document["q"]))
        rest = [trained.encode(f"{document['q']} {option}")[len(context) :] for option in document["options"]]
        wanted = loglikelihoods(trained.model, [Pair(tuple(context), tuple(tokens)) for tokens in rest], shared=False)
        assert row["nats"] == pytest.approx([one.nats for one in wanted], abs=1e-5)
        assert row["picked"]["acc"] == max(range(len(rest)), key=lambda i: wanted[i].nats)
    assert [row["gold"] for row in result.documents] == [0, 0, 1]
    acc = result.metrics[0]
    assert (acc.name, acc.n) == ("acc", 3)
    assert acc.hits == sum(row["picked"]["acc"] == row["gold"] for row in result.documents)
    assert result.report["weights"] == trained.digest


def test_white_space_behind_a_context_goes_over_to_the_choices(trained: TrainedModel) -> None:
    question = Question("t", "the fox \n", ["naïve", "quick"], ["naïve"], 0)
    spaced = choice_pairs(trained, Prompt("the fox \n"), question, "")
    joined = choice_pairs(trained, Prompt("the fox"), question, " \n")
    assert spaced == joined
    assert spaced[0].context == tuple(trained.encode("the fox"))
    empty = choice_pairs(trained, Prompt(""), question, "")
    assert [pair.context for pair in empty] == [(trained.eos,)] * 2


@pytest.mark.parametrize(
    "name", ["facts", *(pytest.param(name, marks=pytest.mark.slow) for name in ("arithmetic", "prose"))]
)
def test_results_are_the_same_at_any_batch(trained: TrainedModel, name: str) -> None:
    found = [evaluated(trained, name, batch=batch) for batch in (1, 3, None)]
    assert found[0] == found[1] == found[2]
    assert found[0] == evaluated(trained, name)


@pytest.mark.slow
def test_a_limit_changes_no_result_of_the_documents_that_stay(trained: TrainedModel) -> None:
    whole, part = evaluated(trained, "arithmetic"), evaluated(trained, "arithmetic", limit=3)
    assert part.documents == whole.documents[:3]
    assert part.report["task_digest"] == whole.report["task_digest"]
    assert part.report["prompts"] != whole.report["prompts"]


def test_examples_are_a_function_of_the_seed_and_the_document(tmp_path: Path) -> None:
    text = CHOICE + "documents: d.jsonl\nexamples: {count: 2, seed: 4}\ndescription: 'Say: '\n"
    documents = [{"q": f"q{i}", "options": ["x", f"y{i}"], "a": 1} for i in range(6)]
    task = load_task(write_task(tmp_path, "t", text, d=lines(documents)))
    asked = questions(task, task.documents, task.places)
    turns = turns_of(task, asked)
    assert turns_of(task, asked[:2]) == turns[:2]
    assert all(question.text not in dict(one.examples) for question, one in zip(asked, turns, strict=True))
    assert len({tuple(one.examples) for one in turns}) > 2
    first = turns[0].examples
    assert turns[0].plain() == "Say: " + "".join(f"{q} {a}\n\n" for q, a in first) + "q0"
    other = replace(task, config=replace(task.config, examples=replace(task.config.examples, seed=5)))  # type: ignore[type-var]
    assert [one.examples for one in turns_of(other, asked)] != [one.examples for one in turns]


def test_generated_answers_are_compared_after_the_same_steps(trained: TrainedModel, tmp_path: Path) -> None:
    said = evaluated(trained, write_task(tmp_path, "a", GENERATE)).documents[0]["replies"][0]
    right = write_task(tmp_path, "b", GENERATE.replace("nothing", json.dumps(f" {said.upper()}!")))
    result = evaluated(trained, right)
    assert result.metrics[0].value == (1.0 if said.upper().lower() == said.lower() else 0.0)
    assert result.documents[0]["right"]
    stop = said[2:4]
    cut = evaluated(trained, write_task(tmp_path, "c", GENERATE + f"stop: [{json.dumps(stop)}]\n"))
    assert cut.documents[0]["replies"] == [said[: said.index(stop)]]


GENERATE = """
kind: generate
text: "the quick brown"
target: nothing
answer: {ignore_case: true, ignore_punctuation: true}
max_tokens: 12
documents: [{}]
"""


def test_a_program_asks_the_questions_of_a_task(trained: TrainedModel) -> None:
    program = ProgramConfig(prompt="Sum. {{ question }}", suffix=" Step by step:", form="plain", max_tokens=4)
    result = evaluated(trained, "arithmetic", program=program, limit=2)
    assert result.documents[0]["prompt"] == "Sum. Question: What is 3 plus 4?\nAnswer: Step by step:"
    assert result.report["program"] is not None
    with pytest.raises(ConfigError, match="generate tasks"):
        evaluated(trained, "facts", program=program)


def test_the_perplexity_of_a_long_text(trained: TrainedModel, tmp_path: Path) -> None:
    text = "kind: rolling\ntext: '{{ t }}'\ndocuments: d.jsonl\n"
    long = "the quick brown fox. " * 80
    result = evaluated(trained, write_task(tmp_path, "t", text, d=lines([{"t": long}, {"t": "fox"}])))
    assert result.documents[0]["tokens"] == len(trained.encode(long)) > trained.model.config.max_seq_len
    total = sum(row["nats"] for row in result.documents)
    assert [metric.name for metric in result.metrics] == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert result.metrics[2].value == pytest.approx(-total / (len(long) + 3) / 0.6931471805599453)


LINES = CHOICE + "documents: d.jsonl\n"
BAD = [
    (LINES.replace("target", "targt"), "{}", "t.yaml:5: unknown key (kind choice): found 'targt'"),
    (LINES.replace("kind: choice", "kind: chioce"), "", "Did you mean choice?"),
    (CHOICE, "", "the task has no documents"),
    (CHOICE + "documents: e.jsonl", "", "e.jsonl: the documents cannot be read"),
    (LINES, '{"q": 1}\n{"q": ', "d.jsonl:2: a line is no JSON"),
    (LINES, "[1]", "d.jsonl:1: a document is an object"),
    (LINES, "", "The task has no documents"),
    (LINES, '{"q": 1, "options": ["a", "b"]}', "'a' is undefined"),
    (LINES, '{"q": 1, "options": ["a", "b"], "a": 2}', "the right choice is none of the choices"),
    (LINES, '{"q": 1, "options": ["a", "b"], "a": "c"}', "d.jsonl:1: the right choice is none"),
    (LINES, '{"q": 1, "options": ["a"], "a": 0}', "a choice needs two texts or more"),
    (LINES, '{"q": [], "options": ["a", "b"], "a": 0}', "text: must be a text"),
    (LINES + "examples: {count: 3}", '{"q": 1, "options": ["a", "b"], "a": 0}', "too few documents"),
    (GENERATE.replace("nothing", "'{{ none }}'"), "", "target: must be a text"),
    (GENERATE.replace("nothing", "''"), "", "the right answer is empty"),
    (GENERATE + "examples: {count: 0}", "", "examples.count must be at least 1"),
    (GENERATE.replace("the quick", "the quick " * 200), "", "The prompt of task t, "),
    ("kind: rolling\ntext: x\ndocuments: [{}]\nexamples: {count: 1}", "", "belong to choice and generate"),
]


@pytest.mark.parametrize(("text", "documents", "message"), BAD)
def test_a_wrong_task_is_refused(
    trained: TrainedModel, tmp_path: Path, text: str, documents: str, message: str
) -> None:
    with pytest.raises(FmscaleError) as caught:
        evaluated(trained, write_task(tmp_path, "t", text, d=documents))
    assert message in str(caught.value)
    assert caught.value.remedy


def test_a_choice_that_adds_no_token_is_refused(trained: TrainedModel) -> None:
    question = Question("t", "the", ["", "a"], [""], 0)
    with pytest.raises(DataError, match="adds no token"):
        choice_pairs(trained, Prompt("the"), question, "")


def test_the_chat_form_needs_a_template(trained: TrainedModel) -> None:
    with pytest.raises(ConfigError, match="has no chat template"):
        evaluated(trained, "facts", chat=True)
