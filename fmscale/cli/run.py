"""`fmscale run`: changes of a run's recorded order behind its newest checkpoint: bans of samples, other mixtures."""

from typing import TYPE_CHECKING, Annotated

import typer

from fmscale.cli.address import ConfigArgument, ConfigCommand, Overrides, find_run
from fmscale.cli.output import JsonOption, example, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.data.plan.order_log import OrderLog
    from fmscale.data.plan.plan import Plan
    from fmscale.store.backends.protocol import Backend

app = typer.Typer(
    name="run",
    no_args_is_help=True,
    help="Change what a run reads from its newest checkpoint on.",
    epilog=example("fmscale run ban runs/store#demo --steps 118-120 --reason 'a loss spike' --stopped"),
)
StoppedOption = Annotated[
    bool,
    typer.Option(
        "--stopped",
        help="No job of the run is at work. The verb takes the run's lease: a job that works all the same can save "
        "nothing from now on.",
    ),
]
FromOption = Annotated[
    int | None,
    typer.Option(min=1, help="First step with the change; by default the step behind the newest checkpoint."),
]


@app.command(
    epilog=example(
        "fmscale run ban runs/store#demo --steps 118-120 --reason 'a loss spike' --stopped",
        "fmscale run ban runs/store#demo --dataset docs --id 0f3c5a... --reason withdrawn --stopped",
    )
)
def ban(
    address: Annotated[str, typer.Argument(metavar="STORE#RUN", help="A run of a store.")],
    reason: Annotated[str, typer.Option(help="Reason, for people; the run's log keeps it.")],
    dataset: Annotated[str | None, typer.Option(help="Ban rows of this dataset alone.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="A-B", help="The rows of these steps; 1 is the first.")] = None,
    samples: Annotated[str | None, typer.Option(metavar="A-B", help="The rows of these samples.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="A-B", help="These rows of --dataset.")] = None,
    id: Annotated[
        list[str] | None, typer.Option("--id", help="Document or record of --dataset, by id; may be repeated.")
    ] = None,
    from_step: FromOption = None,
    stopped: StoppedOption = False,
    json: JsonOption = False,
) -> None:
    """Ban rows from the rest of a run: other rows of the same epoch take their places, and nothing else moves.

    Prints all changes of the order. The past stays as it is: samples before the newest checkpoint keep their rows.
    """
    from fmscale.data.plan.order_log import bans_of
    from fmscale.data.views.mask import document_id
    from fmscale.store.datasets.dataset import open_dataset

    given = {"--steps": steps, "--samples": samples, "--rows": rows, "--id": id}
    chosen = [option for option, value in given.items() if value]
    if len(chosen) != 1 or (chosen[0] in ("--rows", "--id") and dataset is None):
        remedy = "Give one of --steps, --samples, --rows with --dataset, and --id with --dataset."
        raise ConfigError("it is not told which rows to ban", found=chosen, remedy=remedy)
    span = next((_span(text) for text in (steps, samples, rows) if text), range(0))
    ids = [document_id(text) for text in id or []]
    url, run, step = find_run(address, None, None)
    if step is not None:
        raise ConfigError("the order of a run is changed as a whole", found=address, remedy="Leave @STEP out.")
    backend, order = _take(url, run, stopped)
    from_k = _first(backend, run, order.plan, from_step)
    if ids:
        order.ban_documents(open_dataset(backend, str(dataset)), ids, from_k, reason)
    elif rows:
        numbers = [i for i, source in enumerate(order.plan.sources) if source.view.dataset == dataset]
        if not numbers:
            found = sorted({source.view.dataset for source in order.plan.sources})
            raise ConfigError("the run does not read this dataset", found=dataset, remedy=f"It reads {found}.")
        for number in numbers:
            order.ban(number, [(span.start, span.stop)], from_k, reason)
    else:
        if steps:
            span = range(_sample(backend, run, span.start), _sample(backend, run, span.stop))
        for one in bans_of(order.plan, span, from_k, reason, dataset):
            order.ban(one.source, one.rows, from_k, reason)
    _show(order.plan, json)


@app.command(
    cls=ConfigCommand, epilog=example("fmscale run stage my.yaml data.sources.1.weight=3 --from-step 2001 --stopped")
)
def stage(
    config: ConfigArgument,
    overrides: Overrides = None,
    from_step: FromOption = None,
    stopped: StoppedOption = False,
    json: JsonOption = False,
) -> None:
    """Give the rest of a run the mixture of a config: data.sources from a step on, for the run train.run.

    Sources that the run knows go on where they are; new sources begin. The config of later jobs must have the same
    data.sources. Prints all changes of the order. Another batch needs no stage: a resume takes it from its config.
    """
    from fmscale.config import load_config
    from fmscale.data.reading.sample_sources import SampleSources
    from fmscale.data.sources import excluded_rows
    from fmscale.data.views.token_view import TokenView
    from fmscale.store.tiers.fetch import Fetcher
    from fmscale.train.data import longest_sample, training_sources

    loaded = load_config(config, overrides or ())
    run, longest = loaded.train.run, longest_sample(loaded)
    backend, order = _take(loaded.store.url, run, stopped)
    from_k = _first(backend, run, order.plan, from_step)
    sources = training_sources(loaded, backend, loaded.data.sources)
    lengths = {s.view.sequence_length for s in (*order.plan.sources, *sources) if isinstance(s.view, TokenView)}
    if len(lengths) > 1:
        raise ConfigError(
            f"{loaded.place('data.sequence_length')}: the rows of a run have one length",
            found=f"{loaded.data.sequence_length}, with one more for the label among {sorted(lengths)}",
            remedy="Keep it; or begin another train.run with train.resume: RUN@STEP, whose rows may be longer.",
        )
    excluded = excluded_rows(sources, SampleSources(Fetcher(backend)), longest) if longest is not None else ()
    order.add_stage(from_k, sources, excluded)
    _show(order.plan, json)


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not all(number.isdecimal() and len(number) < 19 for number in (first, last or first)):
        raise ConfigError("not a range of numbers", found=text, remedy="Write A-B, both included, or a single number.")
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise ConfigError("the range ends before it begins", found=text, remedy="Write the smaller number first.")
    return span


def _take(url: str, run: str, stopped: bool) -> "tuple[Backend, OrderLog]":
    """The run's store and order log, under a new lease. Raises ConfigError unless the run stands still, DataError if it
    has not begun.
    """
    from fmscale.checkpoint.format.names import run_log
    from fmscale.data.plan.order_log import OrderLog
    from fmscale.store.log.lease import acquire
    from fmscale.store.log.runs import require_run
    from fmscale.store.open import open_store

    if not stopped:
        raise ConfigError(
            "the order changes behind the newest checkpoint, and a job at work there has planned its samples already",
            found=f"run {run} without --stopped",
            remedy="Stop the run's job (SIGUSR1 makes it save), then say --stopped.",
        )
    backend = open_store(url)
    require_run(backend, run)
    log = run_log(backend, run)
    _ = OrderLog(log).plan  # before the lease: an error for a run that has not begun
    return backend, OrderLog(log, lease=acquire(log, "fmscale run").number)


def _first(backend: "Backend", run: str, plan: "Plan", from_step: int | None) -> int:
    """First sample of a change. Raises ConfigError if it lies in the past."""
    from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
    from fmscale.checkpoint.read.meta import next_sample

    newest = max(list_checkpoints(backend, run), key=lambda found: found.entry, default=None)
    k = 0 if newest is None else next_sample(load_manifest(backend, newest).meta)
    asked = k if from_step is None else _sample(backend, run, from_step)
    if newest is not None and asked < k:
        raise ConfigError(
            f"this would change the past: the newest checkpoint of run {run} has trained on what comes before",
            found=f"step {from_step}, sample {asked}; the checkpoint of step {newest.step} goes on at sample {k}",
            remedy=f"Give --from-step {newest.step + 1} or more, or leave it out.",
        )
    return asked


def _sample(backend: "Backend", run: str, step: int) -> int:
    """First sample of a step, counted from 1, by the batches that the run's checkpoints recorded."""
    from fmscale.train.recorded_schedule import recorded_schedule

    schedule = recorded_schedule(backend, run)
    if schedule is None and step > 1:
        remedy = "Give --samples for the rows to ban, and leave --from-step out."
        raise ConfigError(
            "the run has no checkpoint that says the samples of its steps", found=f"step {step}", remedy=remedy
        )
    return schedule.kappa(step - 1) if schedule and step > 0 else 0


def _show(plan: "Plan", json: bool) -> None:
    from fmscale.data.plan.order_log import order_changes

    table(order_changes(plan), json)
