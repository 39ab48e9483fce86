"""`fmscale train`: a run from its config, alone or as one rank of many; the launcher says which."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fmscale.cli.output import example

SHOWN = ("step", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "data_stall", "ckpt_blocking")


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command(
        epilog=example(
            "fmscale train run/laptop train.steps=100",
            "torchrun --nproc-per-node 8 --no-python fmscale train my.yaml",
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

        The same command under torchrun, deepspeed, srun and mpirun, or alone. Told to stop (SIGTERM, SIGUSR1,
        train.seconds) it saves and ends with status 0; run it again to go on. Whether the run is complete is in
        FOLDER/RUN/outcome.json.
        """
        from fmscale.config import load_config
        from fmscale.runtime.sinks import ConsoleSink
        from fmscale.train.run import run_training

        console = ConsoleSink(SHOWN)
        events = ConsoleSink()
        outcome = run_training(
            load_config(config, overrides or ()), show=console.write, event=lambda e: _tell(events, e)
        )
        if outcome.world.rank == 0:
            told = f"run {outcome.run}: step {outcome.last_step}"
            typer.echo(
                f"{told}, stopped by {outcome.stop.name}" if outcome.stop else f"{told}, complete", err=True
            )


def _tell(events: Any, event: Mapping[str, Any]) -> None:
    """Events that a person wants to see as they happen."""
    events.write({name: value for name, value in event.items() if not isinstance(value, (dict, list))})
