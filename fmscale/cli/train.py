"""`fmscale train`: trains a run from its config, as a single process or as a rank of a launcher."""

import gc
import os
from typing import Annotated

import typer

from fmscale.cli.address import ConfigArgument, ConfigCommand, Overrides
from fmscale.cli.output import example

app = typer.Typer()


@app.command(
    cls=ConfigCommand,
    epilog=example(
        "fmscale train run/laptop train.steps=100",
        "torchrun --rdzv-backend=fmscale --nproc-per-node 8 --no-python fmscale train my.yaml",
    ),
)
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    local_rank: Annotated[
        int | None, typer.Option("--local_rank", hidden=True, help="Given by deepspeed; not used.")
    ] = None,
) -> None:
    """Train, from the newest checkpoint of the run if there is one.

    The same command under torchrun, deepspeed, srun and mpirun, or alone. Told to stop (Ctrl-C, SIGTERM,
    SIGUSR1, train.seconds) it saves and ends with status 0; run it again to go on. Where that save did not become
    durable it fails. Whether the run is complete is in FOLDER/RUN/outcome.json.
    """
    from fmscale.cli.train_screen import RunScreen
    from fmscale.config import load_config
    from fmscale.runtime.stop import Stop, ignore_stop_signals
    from fmscale.runtime.world import read_world

    loaded, world = load_config(config, overrides or ()), read_world()
    screen = RunScreen(loaded, world)
    gc.disable()  # collections among the objects of imports take a tenth of their time
    if world.rank == 0:
        screen.announce()
        screen.phase("loading the libraries")
    from fmscale.train.run import run_training

    gc.freeze()
    gc.enable()
    outcome = run_training(loaded, show=screen.step, event=screen.event, phase=screen.phase)
    ignore_stop_signals()  # while Python ends: a run that has saved must not report an end by a signal
    if world.rank == 0:
        screen.end(outcome.last_step, outcome.stop.name if outcome.stop else "")
    if world.elastic and outcome.stop is Stop.SIGTERM:
        # An agent ended its ranks for the next meeting, of which that of this node may not have heard yet.
        raise typer.Exit(os.EX_TEMPFAIL)
