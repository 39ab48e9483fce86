"""`fmscale train`: a run from its config, alone or as one rank of many; the launcher says which."""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from fmscale.cli.output import example, human_seconds
from fmscale.runtime.sinks import ConsoleSink

SHOWN = ("step", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "data_stall", "ckpt_blocking", "left")


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command(
        epilog=example(
            "fmscale train run/laptop train.steps=100",
            "torchrun --rdzv-backend=fmscale --nproc-per-node 8 --no-python fmscale train my.yaml",
        )
    )
    def train(
        config: Annotated[str, typer.Argument(help="A YAML file, or the name of one that fmscale ships.")],
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.steps=100.")
        ] = None,
        local_rank: Annotated[
            int | None, typer.Option("--local_rank", hidden=True, help="Given by deepspeed; not used.")
        ] = None,
    ) -> None:
        """Train, from the newest checkpoint of the run if there is one.

        The same command under torchrun, deepspeed, srun and mpirun, or alone. Told to stop (Ctrl-C, SIGTERM,
        SIGUSR1, train.seconds) it saves and ends with status 0; run it again to go on. Where that save did not become
        durable it fails. Whether the run is complete is in FOLDER/RUN/outcome.json.
        """
        from fmscale.config import load_config
        from fmscale.train.run import run_training

        outcome = run_training(load_config(config, overrides or ()), show=progress(), event=_tell)
        if outcome.world.rank == 0:
            told = f"run {outcome.run}: step {outcome.last_step}"
            typer.echo(
                f"{told}, stopped by {outcome.stop.name}" if outcome.stop else f"{told}, complete", err=True
            )


def progress(clock: Callable[[], float] = time.monotonic) -> Callable[[Mapping[str, Any]], None]:
    """Shows records of steps: how far the run is, and how long the rest takes at the pace since the first record."""
    console = ConsoleSink(SHOWN)
    first: tuple[int, float] | None = None

    def show(record: Mapping[str, Any]) -> None:
        nonlocal first
        step, steps, now = record["step"], record["steps"], clock()
        shown = {**record, "step": f"{step:,}/{steps:,}"}
        if first is None:
            first = step, now
        elif step < steps:
            shown["left"] = human_seconds((steps - step) * (now - first[1]) / (step - first[0]))
        console.write(shown)

    return show


def _tell(event: Mapping[str, Any]) -> None:
    """Events that a person wants to see as they happen; the log has told of saves that did not succeed."""
    if "reason" not in event:
        ConsoleSink().write({n: value for n, value in event.items() if not isinstance(value, (dict, list))})
