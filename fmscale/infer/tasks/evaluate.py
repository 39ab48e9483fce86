"""A task on a model: results by document, metrics, and digests of all that they depend on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from fmscale.config.schema import as_tree
from fmscale.errors import ConfigError
from fmscale.infer.generate import Completion
from fmscale.infer.likelihoods import Likelihood, Pair, loglikelihoods, rolling_windows
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.answers import parse_answer, plain_answer
from fmscale.infer.prompt.complete import complete
from fmscale.infer.prompt.forms import Prompt, chat_of, make_prompts
from fmscale.infer.prompt.program import ProgramConfig, run_program
from fmscale.infer.sampling import Sampling
from fmscale.infer.tasks.code import require_apart, run_program_text
from fmscale.infer.tasks.metrics import Metric, choose, pass_at_k, perplexities, share
from fmscale.infer.tasks.prompts import Question, choice_pairs, first_token, questions, turns_of
from fmscale.infer.tasks.task import ChoiceTask, CodeTask, GenerateTask, LoadedTask, RollingTask
from fmscale.store.digest import canonical_json, metadata_digest

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A model's results in a task."""

    metrics: list[Metric]
    documents: Rows
    report: dict[str, Any]
    """Run, step, and digests of the weights, the task, the chat template, the program and the prompts."""

    def as_json(self) -> dict[str, Any]:
        """The report with the metrics, as JSON values."""
        return {**self.report, "metrics": [asdict(metric) for metric in self.metrics]}


class _Work(NamedTuple):
    """Values that all kinds of tasks get."""

    trained: TrainedModel
    asked: list[Question]
    prompts: list[Prompt]
    ends: list[int] | None
    """Tokens that end a reply in a chat."""
    score: Callable[[list[Pair]], list[Likelihood]]
    threads: int | None


def evaluate_task(
    trained: TrainedModel,
    task: LoadedTask,
    *,
    limit: int | None = None,
    chat: bool = False,
    program: ProgramConfig | None = None,
    run_code: bool = False,
    batch: int | None = None,
    shared: bool = True,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda continuations: None,
) -> TaskResult:
    """The results of a task.

    Args:
        trained: the model with its tokenizer and chat template.
        task: the task.
        limit: only the first documents.
        chat: ask by the run's chat template.
        program: ask the questions of a generate task by this program, as `question`.
        run_code: permits a code task to execute what the model writes.
        batch, shared, threads, progress: as of `loglikelihoods`.

    Raises ConfigError and DataError for templates and documents that cannot be used, prompts that are too long, a
    program for another kind of task, and code that may not be run.
    """
    config = task.config
    if program is not None and not isinstance(config, GenerateTask):
        raise ConfigError(
            f"A program asks the questions of generate tasks, and {task.name} is another kind",
            found=config.kind,
            remedy="Leave out --program.",
        )
    if isinstance(config, CodeTask):
        if not run_code:
            remedy = "Give --run-code if you trust the model, or run in a container."
            raise ConfigError(f"Task {task.name} executes what the model writes", found="no permission", remedy=remedy)
        require_apart()
    asked = questions(task, task.documents[:limit], task.places[:limit])
    form = "chat" if chat and not isinstance(config, RollingTask) else program.form if program else "plain"
    chatting = chat_of(trained, form)
    prompts = [] if program else make_prompts(turns_of(task, asked), chatting)

    def score(pairs: list[Pair]) -> list[Likelihood]:
        return loglikelihoods(trained.model, pairs, batch=batch, shared=shared, threads=threads, progress=progress)

    work = _Work(trained, asked, prompts, chatting.ends if chatting else None, score, threads)
    match config:
        case ChoiceTask():
            metrics, rows = _choice(work, config)
        case GenerateTask() if program is not None:
            values = [{**task.documents[i], "question": question.text} for i, question in enumerate(asked)]
            names = [question.where for question in asked]
            found = run_program(trained, replace(program, form=form), values, names=names, threads=threads)
            metrics, rows = _matched(asked, config, [vars(one) for one in found])
        case GenerateTask():
            replies = [reply[0].text for reply in _replies(work, config)]
            said = [{"replies": [text], "answer": parse_answer(text, config.answer)} for text in replies]
            metrics, rows = _matched(asked, config, said)
        case RollingTask():
            metrics, rows = _rolling(work)
        case CodeTask():
            metrics, rows = _code(work, config)
    rows = [{"document": question.where, **row} for question, row in zip(asked, rows, strict=True)]
    for row, prompt in zip(rows, prompts, strict=False):
        row["prompt"] = prompt.text
    template = trained.template if chatting else None
    report = {
        "run": trained.run,
        "step": trained.step,
        "weights": trained.digest,
        "task": task.name,
        "kind": config.kind,
        "task_digest": task.digest,
        "template": None if template is None else template.digest,
        "program": None if program is None else metadata_digest(canonical_json(as_tree(program))),
        "prompts": metadata_digest(canonical_json([row["prompt"] for row in rows])),
        "documents": len(asked),
    }
    return TaskResult(metrics=metrics, documents=rows, report=report)


def _choice(work: _Work, config: ChoiceTask) -> tuple[list[Metric], Rows]:
    parts = [
        choice_pairs(work.trained, prompt, question, config.delimiter)
        for prompt, question in zip(work.prompts, work.asked, strict=True)
    ]
    scores = iter(work.score([pair for part in parts for pair in part]))
    rows: Rows = []
    for question, part in zip(work.asked, parts, strict=True):
        found = [next(scores) for _ in part]
        nats, greedy = [one.nats for one in found], [one.greedy for one in found]
        picked = choose(nats, question.choices)
        rows.append({"nats": nats, "greedy": greedy, "picked": picked, "gold": question.gold})
    names = ("acc", "acc_norm", "acc_bytes")
    return [share(name, [row["picked"][name] == row["gold"] for row in rows]) for name in names], rows


def _matched(asked: Sequence[Question], config: GenerateTask, said: Rows) -> tuple[list[Metric], Rows]:
    """The rows of `answer`s, with the right answers beside."""
    rows: Rows = []
    for question, row in zip(asked, said, strict=True):
        right = [plain_answer(one, config.answer) for one in question.right]
        hit = row["answer"] is not None and plain_answer(row["answer"], config.answer) in right
        rows.append({**row, "target": question.right, "right": hit})
    return [
        share("exact_match", [row["right"] for row in rows]),
        share("no_answer", [row["answer"] is None for row in rows]),
    ], rows


def _rolling(work: _Work) -> tuple[list[Metric], Rows]:
    first, limit = first_token(work.trained), work.trained.model.config.max_seq_len
    parts = [rolling_windows(prompt.encode(work.trained), first, limit) for prompt in work.prompts]
    scores = iter(work.score([pair for part in parts for pair in part]))
    nats = [sum(next(scores).nats for _ in part) for part in parts]
    tokens = [sum(len(pair.continuation) for pair in part) for part in parts]
    rows: Rows = [{"nats": a, "tokens": b} for a, b in zip(nats, tokens, strict=True)]
    return perplexities(nats, [prompt.text for prompt in work.prompts]), rows


def _code(work: _Work, config: CodeTask) -> tuple[list[Metric], Rows]:
    rows: Rows = []
    for question, group in zip(work.asked, _replies(work, config), strict=True):
        programs = [f"{question.text}{reply.text}\n{question.right[0]}\n" for reply in group]
        failures = [run_program_text(program, seconds=config.seconds) for program in programs]
        rows.append({"replies": [r.text for r in group], "failures": failures, "right": failures.count(None)})
    if config.samples == 1:
        return [share("pass@1", [row["right"] == 1 for row in rows])], rows
    metrics = []
    for k in config.k:
        chances = [pass_at_k(config.samples, row["right"], k) for row in rows]
        metrics.append(Metric(name=f"pass@{k}", value=sum(chances) / len(chances), n=len(chances)))
    return metrics, rows


def _replies(work: _Work, config: GenerateTask | CodeTask) -> list[list[Completion]]:
    """The replies to each question: the likeliest, or the samples of a code task."""
    sampling, samples = None, 1
    if isinstance(config, CodeTask):
        sampling, samples = Sampling(temperature=config.temperature, seed=config.seed), config.samples
    return complete(
        work.trained, [prompt.encode(work.trained) for prompt in work.prompts], max_tokens=config.max_tokens,
        stop=config.stop, ends=work.ends, names=[question.where for question in work.asked], threads=work.threads,
        sampling=sampling, samples=samples,
    )  # fmt: skip
