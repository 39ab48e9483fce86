"""The acts in order. Each act can be repeated without harm, so that a stopped quickstart can go on."""

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fmscale.config.derived import num_parameters
from fmscale.data.ingest import ingest
from fmscale.infer import Document
from fmscale.infer.load import TrainedModel, open_trained
from fmscale.quickstart.corpus import heldout_share, nothing_held_out, standard_library
from fmscale.quickstart.heldout import SPLIT, complete, heldout, measure, training_text
from fmscale.quickstart.page import render
from fmscale.quickstart.results import Report, build_report
from fmscale.quickstart.settings import DATASET, UNBROKEN_SHARE, QuickstartSettings
from fmscale.quickstart.state import QuickstartState, Screen
from fmscale.quickstart.training import train_run, train_unbroken
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.store.open import open_store
from fmscale.train.compare import History, read_history
from fmscale.train.preflight.preflight import check_run

ACTS = ("ingest", "train", "unbroken", "evaluate", "generate", "report")


def run_quickstart(settings: QuickstartSettings, screen: Screen) -> Report:
    """Ingest, train with a move half-way, evaluate, generate, report; return the report.

    Raises FmscaleError with the remedy; the next call goes on from there.
    """
    state = QuickstartState(settings, screen)
    corpus = _ingest(state)
    steps, warnings = _train(state)
    unbroken = _train_unbroken(state, steps)
    trained = open_trained(f"{settings.store}#{settings.run}", device=settings.device)
    measured = _measured(state, trained, heldout(trained))
    results = {**measured, "steps": steps, "warnings": warnings, "corpus": corpus}
    return _reported(state, read_history(unbroken), results)


def _ingest(state: QuickstartState) -> dict[str, Any]:
    """Ingest the corpus and describe it. Raises DataError, before any training, if no document was held out."""
    settings, screen = state.settings, state.screen
    with state.act("ingest"):
        files = settings.corpus or standard_library()
        result = ingest(
            files,
            store=settings.store,
            dataset=DATASET,
            tokenizer="bpe:8192",
            heldout=heldout_share(files, settings.store),
            progress=lambda phase, done, total: screen.advance("ingest", done, total, phase),
        )
    if SPLIT not in result.splits:
        raise nothing_held_out(result.documents)
    screen.end("ingest", f"{result.documents:,} documents, {result.tokens:,} tokens")
    library = f"the standard library of Python {sys.version.split()[0]}"
    return {
        "what": ", ".join(settings.corpus) or library,
        "bytes": result.text_bytes,
        "documents": result.documents,
        "tokens": result.tokens,
        "splits": result.splits,
    }


def _train(state: QuickstartState) -> tuple[int, list[str]]:
    """Train in two jobs; return the run's steps and the warnings of its checks. Raises the first problem of either job
    before the first job starts.
    """
    settings, screen = state.settings, state.screen
    with state.act("train"):
        checks = [check_run(settings.load(half), half.world) for half in settings.halves]
        for problem in (problem for check in checks for problem in check.problems):
            raise problem
        steps = checks[0].forecast.steps
        assert steps is not None, "a config that does not say how long it is has a problem"
        for warning in checks[0].warnings:
            screen.tell(f"warning: {warning}")
        train_run(settings, steps, partial(_watch, screen, "train", steps), screen.tell)
    screen.end("train", f"{steps} steps")
    return steps, checks[0].warnings


def _train_unbroken(state: QuickstartState, steps: int) -> Path:
    """Train the first steps again without a stop, beyond the step of the move; return the folder of that run."""
    settings, screen = state.settings, state.screen
    records = read_jsonl(settings.folder / "metrics.jsonl")
    moved = max((record["step"] for record in records if record.get("event") == "resumed"), default=0)
    steps = min(steps, max(math.ceil(steps * UNBROKEN_SHARE), moved + 2))
    with state.act("unbroken"):
        folder = train_unbroken(settings, steps, partial(_watch, screen, "unbroken", steps))
    screen.end("unbroken", f"the first {steps} steps")
    return folder


def _watch(screen: Screen, act: str, steps: int, record: dict[str, Any]) -> None:
    note = f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s"
    screen.advance(act, record["step"], steps, note)


def _measured(state: QuickstartState, trained: TrainedModel, documents: Sequence[Document]) -> dict[str, Any]:
    """Held-out bits and completions."""
    config, screen = state.settings.load(), state.screen
    total, measured = sum(len(document.text) for document in documents), 0

    def progress(size: int) -> None:
        nonlocal measured
        measured += size
        screen.advance("evaluate", measured, total)

    with state.act("evaluate"):
        seen = training_text(trained)
        bits = measure(trained, documents, seen, window=config.data.sequence_length, progress=progress)
    screen.end("evaluate", f"{len(bits)} held-out documents, {total:,} bytes")
    with state.act("generate"):
        completions = complete(trained, documents)
    screen.end("generate", f"{len(completions)} completions")
    parameters = num_parameters(config.decoder("the quickstart"), trained.model.vocab_size)
    return {"documents": bits, "completions": completions, "parameters": parameters, "primed_bytes": len(seen)}


def _reported(state: QuickstartState, unbroken: History, results: dict[str, Any]) -> Report:
    """report.json and report.html."""
    settings = state.settings
    with state.act("report"):
        history = read_history(settings.folder)
        backend = open_store(settings.store, read_only=True)
        report = build_report(settings.load(), backend, history, unbroken, **results)
    report |= {"acts": state.acts, "wall_seconds": sum(state.acts.values()), "cpu_seconds": sum(state.cpu.values())}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (settings.folder / "report.json").write_text(text + "\n", encoding="utf-8")
    page = render(report, *([run.steps[step] for step in sorted(run.steps)] for run in (history, unbroken)))
    path = settings.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    state.screen.end("report", str(path))
    return report
