"""A task on a model: results by document, metrics, and digests of all that they depend on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fmscale.config.schema import as_tree
from fmscale.errors import ConfigError
from fmscale.infer.likelihoods import loglikelihoods, rolling_windows
from fmscale.infer.load import TrainedModel
from fmscale.infer.prompt.answers import parse_answer, plain_answer
from fmscale.infer.prompt.complete import complete
from fmscale.infer.prompt.forms import Prompt, make_prompts, wants_chat
from fmscale.infer.prompt.program import Answered, ProgramConfig, run_program
from fmscale.infer.sampling import Sampling
from fmscale.infer.tasks.code import require_apart, run_program_text
from fmscale.infer.tasks.metrics import Metric, choose, pass_at_k, perplexities, share
from fmscale.infer.tasks.prompts import Question, choice_pairs, first_token, questions, turns_of
from fmscale.infer.tasks.task import ChoiceTask, CodeTask, GenerateTask, LoadedTask, RollingTask
from fmscale.store.digest import canonical_json, metadata_digest

Progress = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A model's results in a task."""

    metrics: list[Metric]
    documents: list[dict[str, Any]]
    """Result of each document."""
    report: dict[str, Any]
    """Run, step, and digests of the weights, the task, the chat template, the program and the prompts."""

    def as_json(self) -> dict[str, Any]:
        """The report with the metrics, as JSON values."""
        return {**self.report, "metrics": [asdict(metric) for metric in self.metrics]}


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All that the kinds of tasks get."""

    trained: TrainedModel
    task: LoadedTask
    asked: list[Question]
    prompts: list[Prompt]
    batch: int | None
    shared: bool
    threads: int | None
    progress: Progress


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
    progress: Progress = lambda documents: None,
) -> TaskResult:
    """The results of a task.

    Args:
        trained: the model with its tokenizer and chat template.
        task: the task.
        limit: only the first documents.
        chat: ask by the run's chat template.
        program: ask the questions of a generate task by this program, as `question`.
        run_code: permits a code task to execute what the model writes.
        batch: most documents that are scored in one forward; it changes no result.
        shared: read a context once for all its choices; for comparison alone.
        threads: CPU threads; None takes as many as the work keeps busy.
        progress: called with the numbers of scored continuations.

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
            raise ConfigError(
                f"Task {task.name} executes what the model writes",
                found="no permission",
                remedy="Give --run-code if you trust the model, or run in a container.",
            )
        require_apart()
    asked = questions(task, task.documents[:limit], task.places[:limit])
    answered: list[Answered] = []
    prompts: list[Prompt] = []
    if program is not None:
        form = "chat" if chat else program.form
        rows = [{**task.documents[i], "question": question.text} for i, question in enumerate(asked)]
        names = [question.where for question in asked]
        answered = run_program(trained, replace(program, form=form), rows, names=names, threads=threads)
        texts, chatted = [one.prompt for one in answered], wants_chat(trained, form)
    else:
        chatted = wants_chat(trained, "chat" if chat and not isinstance(config, RollingTask) else "plain")
        prompts = make_prompts(trained, turns_of(task, asked), chat=chatted)
        texts = [prompt.text for prompt in prompts]
    work = _Work(
        trained=trained, task=task, asked=asked, prompts=prompts, batch=batch, shared=shared, threads=threads,
        progress=progress,
    )  # fmt: skip
    match config:
        case ChoiceTask():
            metrics, found = _choice(work, config)
        case GenerateTask():
            metrics, found = _generated(work, config, answered)
        case RollingTask():
            metrics, found = _rolling(work)
        case CodeTask():
            metrics, found = _code(work, config)
    template = getattr(trained, "template", None) if chatted else None
    report = {
        "run": trained.run,
        "step": trained.step,
        "weights": trained.digest,
        "task": task.name,
        "kind": config.kind,
        "task_digest": task.digest,
        "template": None if template is None else template.digest,
        "program": None if program is None else metadata_digest(canonical_json(as_tree(program))),
        "prompts": metadata_digest(canonical_json(texts)),
        "documents": len(asked),
    }
    documents = [
        {"document": question.where, "prompt": text, **row}
        for question, text, row in zip(asked, texts, found, strict=True)
    ]
    return TaskResult(metrics=metrics, documents=documents, report=report)


Outcome = tuple[list[Metric], Sequence[Mapping[str, Any]]]


def _choice(work: _Work, config: ChoiceTask) -> Outcome:
    parts = [
        choice_pairs(work.trained, prompt, question, config.delimiter)
        for prompt, question in zip(work.prompts, work.asked, strict=True)
    ]
    scores = iter(
        loglikelihoods(
            work.trained.model, [pair for part in parts for pair in part],
            batch=work.batch, shared=work.shared, threads=work.threads, progress=work.progress,
        )
    )  # fmt: skip
    rows = []
    for question, part in zip(work.asked, parts, strict=True):
        found = [next(scores) for _ in part]
        nats = [one.nats for one in found]
        picked = choose(nats, question.choices)
        rows.append({"nats": nats, "greedy": [one.greedy for one in found], "picked": picked, "gold": question.gold})
    names = ("acc", "acc_norm", "acc_bytes")
    return [share(name, [row["picked"][name] == row["gold"] for row in rows]) for name in names], rows  # type: ignore[index]


def _generated(work: _Work, config: GenerateTask, answered: Sequence[Answered]) -> Outcome:
    if answered:
        given = [one.answer for one in answered]
        said: list[dict[str, Any]] = [{"replies": a.replies, "parsed": a.parsed, "votes": a.votes} for a in answered]
    else:
        texts = [reply[0].text for reply in _replies(work, config.max_tokens, config.stop)]
        given = [parse_answer(text, config.answer) for text in texts]
        said = [{"replies": [text]} for text in texts]
    rows = []
    for question, row, answer in zip(work.asked, said, given, strict=True):
        right = [plain_answer(one, config.answer) for one in question.right]
        hit = answer is not None and plain_answer(answer, config.answer) in right
        rows.append({**row, "answer": answer, "target": question.right, "right": hit})
    metrics = [share("exact_match", [row["right"] for row in rows])]
    return [*metrics, share("no_answer", [answer is None for answer in given])], rows


def _rolling(work: _Work) -> Outcome:
    trained, first, rows = work.trained, first_token(work.trained), []
    parts = [rolling_windows(p.encode(trained), first, trained.model.config.max_seq_len) for p in work.prompts]
    pairs = [pair for part in parts for pair in part]
    scores = iter(loglikelihoods(trained.model, pairs, batch=work.batch, threads=work.threads, progress=work.progress))
    texts = [prompt.text for prompt in work.prompts]
    for text, part in zip(texts, parts, strict=True):
        nats = sum(next(scores).nats for _ in part)
        rows.append({"nats": nats, "bytes": len(text.encode()), "tokens": sum(len(pair.continuation) for pair in part)})
    return perplexities([row["nats"] for row in rows], texts), rows


def _code(work: _Work, config: CodeTask) -> Outcome:
    sampling = Sampling(temperature=config.temperature, seed=config.seed)
    rows = []
    for question, group in zip(
        work.asked, _replies(work, config.max_tokens, config.stop, sampling, config.samples), strict=True
    ):
        programs = [f"{question.text}{reply.text}\n{question.right[0]}\n" for reply in group]
        failures = [run_program_text(program, seconds=config.seconds) for program in programs]
        right = failures.count(None)
        chances = {f"pass@{k}": pass_at_k(config.samples, right, k) for k in config.k}
        rows.append({"replies": [r.text for r in group], "failures": failures, "right": right, **chances})
    metrics = []
    for k in config.k:
        values = [float(str(row[f"pass@{k}"])) for row in rows]
        if k == config.samples == 1:
            metrics.append(share("pass@1", [value == 1.0 for value in values]))
        else:
            metrics.append(Metric(name=f"pass@{k}", value=sum(values) / len(values), n=len(values)))
    return metrics, rows


def _replies(
    work: _Work, max_tokens: int, stop: Sequence[str], sampling: Sampling | None = None, samples: int = 1
) -> Any:
    return complete(
        work.trained, [prompt.encode(work.trained) for prompt in work.prompts], max_tokens=max_tokens, stop=stop,
        sampling=sampling, samples=samples, names=[question.where for question in work.asked], threads=work.threads,
    )  # fmt: skip
