"""`fmscale dataset trace` and `audit`: what a run trains on, and proof of what it was given."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.output import JsonOption, example, print_json, record, table
from fmscale.errors import ConfigError

VIOLATED = 1
"""Exit status of `audit` when a promise was violated."""

StoreOption = Annotated[str, typer.Option("--store", help="The store: a directory or a URL.")]
RunOption = Annotated[str, typer.Option("--run", help="Name of the run, whose order log is in the store.")]


def register(group: typer.Typer) -> None:
    """Add the commands to the `dataset` group."""
    group.command(
        epilog=example(
            "fmscale dataset trace --store runs/store --run demo --batch 8 --step 3",
            "fmscale dataset trace --store runs/store --run demo --batch 8 --document 00c1... --steps 1000",
        )
    )(trace)
    group.command(epilog=example("fmscale dataset audit --store runs/store --run demo runs/demo/*.arrow"))(
        audit
    )


def trace(
    store: StoreOption,
    run: RunOption,
    batch: Annotated[int, typer.Option(help="Global batch: rows of a step over all ranks.")],
    step: Annotated[int | None, typer.Option(help="Show the documents of this step.")] = None,
    document: Annotated[str | None, typer.Option(help="Show the samples that held this document.")] = None,
    steps: Annotated[int, typer.Option(help="With --document: look at the steps below this one.")] = 10_000,
    json: JsonOption = False,
) -> None:
    """Name the documents of a step, or the steps of a document."""
    from fmscale.data.order_log import OrderLog
    from fmscale.data.steps import Batches
    from fmscale.data.trace import trace_document, trace_step
    from fmscale.store.log import RUN_KINDS, Log
    from fmscale.store.open import open_store

    if (step is None) == (document is None):
        raise ConfigError(
            "give either --step or --document",
            found=(step, document),
            remedy="--step shows its documents, --document its steps.",
        )
    backend = open_store(store, read_only=True)
    plan = OrderLog(Log(backend, f"runs/{run}", RUN_KINDS)).plan
    batches = Batches([(0, batch)])
    if step is not None:
        found = trace_step(backend, plan, batches, step)
    else:
        found = trace_document(backend, plan, batches, str(document), steps=steps)
    table([asdict(one) for one in found], json)


def audit(
    store: StoreOption,
    run: RunOption,
    records: Annotated[list[Path], typer.Argument(help="Delivery records, one a rank.")],
    json: JsonOption = False,
) -> None:
    """Prove from what ranks received: every token once an epoch, true bytes, mixture, shuffle.

    Only names and weights of the datasets are taken from the run; what was delivered is judged against the
    stored documents. Exit status 1 when something is violated.
    """
    from fmscale.data.audit import AuditSource
    from fmscale.data.audit import audit as run_audit
    from fmscale.data.order_log import OrderLog
    from fmscale.store.dataset import open_dataset
    from fmscale.store.log import RUN_KINDS, Log
    from fmscale.store.open import open_store

    backend = open_store(store, read_only=True)
    plan = OrderLog(Log(backend, f"runs/{run}", RUN_KINDS)).plan
    weights = {id(source): source.weight for source in plan.stages[-1].sources}
    sources = [
        AuditSource(
            backend=backend,
            dataset=open_dataset(backend, source.view.dataset),
            commits=source.view.commits,
            split=source.view.split,
            weight=float(weights.get(id(source), source.weight)),
        )
        for source in plan.sources
    ]
    report = run_audit(records, sources)
    values = asdict(report)
    if json:
        print_json(values)
    else:
        values["problems"] = "; ".join(report.problems) or "none"
        record(values, json=False)
    if report.problems:
        raise typer.Exit(VIOLATED)
