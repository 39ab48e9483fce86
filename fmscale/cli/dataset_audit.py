"""`fmscale dataset trace` and `audit`: documents and records of a run's steps, and proof of their delivery."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmscale.cli.address import MOST_STEPS, RunOption, StoreOption, find_run
from fmscale.cli.output import JsonOption, example, print_json, record, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.data.plan.batch_schedule import BatchSchedule
    from fmscale.data.plan.plan import Plan
    from fmscale.data.provenance.stored import AuditSource
    from fmscale.store.backends.protocol import Backend

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale dataset trace runs/store#demo@3",
        "fmscale dataset trace runs/store#demo --document 00c1... --steps 1000",
    )
)
def trace(
    address: Annotated[
        str | None,
        typer.Argument(metavar="STORE#RUN[@STEP]", help="A run of a store, and --step; or give --store and --run."),
    ] = None,
    store: StoreOption = None,
    run: RunOption = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Global batch: rows of a step over all ranks. A checkpoint of the run says it."
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Show what this step trained on; 1 is the first step, as in the metrics."
        ),
    ] = None,
    document: Annotated[str | None, typer.Option(help="Show the samples that held this document or record.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="With --document: look at so many first steps.")
    ] = 10_000,
    json: JsonOption = False,
) -> None:
    """Name the documents or records of a step, or the steps of a document or record."""
    from fmscale.data.provenance.trace import trace_document, trace_step
    from fmscale.store.open import open_store

    url, name, address_step = find_run(address, store, run)
    step = address_step if step is None else step
    if (step is None) == (document is None) or address_step not in (None, step):
        remedy = "--step shows its documents, --document its steps."
        raise ConfigError("give either --step or --document", found=(step, document), remedy=remedy)
    backend = open_store(url, read_only=True)
    plan = _plan(backend, name)
    batches = _batches(backend, name, batch)
    if step is not None:
        samples = trace_step(backend, plan, batches, step - 1)
    else:
        samples = trace_document(backend, plan, batches, str(document), steps=steps)
    table([{**asdict(sample), "step": sample.step + 1} for sample in samples], json)


@app.command(epilog=example("fmscale dataset audit runs/store#demo runs/demo/delivery/*.arrow"))
def audit(
    records: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE#RUN RECORD...",
            help="The run, unless --store and --run name it; then delivery records of every rank and job.",
        ),
    ],
    store: StoreOption = None,
    run: RunOption = None,
    config: Annotated[
        Path | None, typer.Option(help="The run's config; for samples of a class of your own, which it names.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Prove from what ranks received: every token or record once an epoch, true bytes, mixture, shuffle.

    The run records what it delivers, a file a rank and job, with train.record_delivery: true. Rows that a killed job
    and the next job both delivered, the same, count once. Only names, weights, masks and specs of the datasets, seeds,
    banned rows and the step of its newest checkpoint are taken from the run; deliveries are judged against the stored
    documents and records, of which a spec's samples are made again. Exit status 1 when something is violated.
    """
    from fmscale.data.provenance.audit import audit as run_audit
    from fmscale.store.open import open_store
    from fmscale.train.recorded_schedule import trained_samples

    if config is not None:
        from fmscale.config import load_config

        load_config(config)  # imports the classes that it names; a store alone imports none
    first = records.pop(0) if run is None else None
    url, name, step = find_run(first, store, run)
    if step is not None:
        raise ConfigError("a run is audited as a whole", found=first or run, remedy="Leave @STEP out.")
    backend = open_store(url, read_only=True)
    files = [Path(record) for record in records]
    report = run_audit(files, _sources(backend, _plan(backend, name)), trained_samples(backend, name))
    values = asdict(report)
    if json:
        print_json(values)
    else:
        values["redelivered"] = f"{report.redelivered} delivered again after a resume"
        values["problems"] = "; ".join(report.problems) or "none"
        record(values, json=False)
    if report.problems:
        raise typer.Exit(1)


def _batches(backend: "Backend", run: str, batch: int | None) -> "BatchSchedule":
    """Rows of the run's steps, from its checkpoints or `batch`. Raises ConfigError if these differ, or without both."""
    from fmscale.data.plan.batch_schedule import BatchSchedule
    from fmscale.train.recorded_schedule import recorded_schedule

    recorded = recorded_schedule(backend, run)
    if recorded is None:
        if batch is None:
            found, remedy = f"{backend.url}, run {run}", "Give --batch: rows of a step over all ranks."
            raise ConfigError("the run has no checkpoint that says its global batch", found=found, remedy=remedy)
        return BatchSchedule([(0, batch)])
    sizes = sorted({size for _, size in recorded.schedule})
    if batch is not None and sizes != [batch]:
        found, remedy = f"{batch}, the run has {' and '.join(map(str, sizes))}", "Leave --batch out."
        raise ConfigError("--batch is not the global batch of the run", found=found, remedy=remedy)
    return recorded


def _plan(backend: "Backend", run: str) -> "Plan":
    """The recorded order of a run. Raises ConfigError if the store has no such run."""
    from fmscale.data.plan.order_log import OrderLog
    from fmscale.store.log.log import RUN_KINDS, Log
    from fmscale.store.log.runs import require_run

    require_run(backend, run)
    return OrderLog(Log(backend, f"runs/{run}", RUN_KINDS)).plan


def _sources(backend: "Backend", plan: "Plan") -> "list[AuditSource]":
    """The sources as the run declared them, without their numbers of samples."""
    from fmscale.data.plan.plan import source_key
    from fmscale.data.provenance.stored import AuditSource
    from fmscale.data.views.placement import merged
    from fmscale.store.datasets.dataset import open_dataset

    stages = [(stage.from_k, {source_key(s): float(s.weight) for s in stage.sources}) for stage in plan.stages]
    sources = []
    for number, source in enumerate(plan.sources):
        banned = [rows for ban in plan.bans if ban.source == number for rows in ban.rows]
        for stage in plan.stages:
            for other, rows in zip(stage.sources, stage.excluded, strict=False):
                banned += rows if source_key(other) == source_key(source) else ()
        sources.append(
            AuditSource(
                dataset=open_dataset(backend, source.view.dataset),
                commits=source.view.commits,
                split=source.view.split,
                weights=tuple((first, weights.get(source_key(source), 0.0)) for first, weights in stages),
                masks=source.view.masks,
                banned=tuple(merged(banned)),
                spec=source.view.spec,
                seed=source.seed,
            )
        )
    return sources
