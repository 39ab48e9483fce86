"""`fmscale launch`: starts `fmscale train` on all ranks, by the launcher that the cluster has."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmscale.cli.address import ConfigArgument, ConfigCommand, Overrides
from fmscale.cli.output import example, print_error, say_lines, table
from fmscale.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from fmscale.config import LaunchConfig
    from fmscale.launch.launch import LaunchRequest
    from fmscale.launch.run import RankEnd
    from fmscale.launch.sweep import Element


Launcher = StrEnum("Launcher", ["local", "torchrun", "deepspeed", "srun", "sbatch", "mpirun"])
GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""Devices of NVIDIA, AMD, and of GPUs under WSL."""
app = typer.Typer()


@app.command(
    cls=ConfigCommand,
    epilog=example(
        "fmscale launch run/laptop --procs-per-node 2",
        "fmscale launch my.yaml --with deepspeed --hostfile hosts --dry-run",
        "fmscale launch my.yaml --with sbatch --nodes 4 --procs-per-node 8 --argument=--gpus-per-node=8",
        "fmscale launch my.yaml --sweep optimizer.lr=1e-3,3e-4 --sweep data.seed=1,2",
    ),
)
def launch(
    config: ConfigArgument,
    overrides: Overrides = None,
    with_: Annotated[
        Launcher | None,
        typer.Option("--with", help="The launcher. Default: the config's, or local, or torchrun on several nodes."),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Nodes; with MIN:MAX (torchrun, sbatch) the run goes on when one is lost or comes. Default: the "
            "config's, all of the hostfile, or 1.",
        ),
    ] = None,
    procs_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks on each. Default: the config's, the hostfile's slots, or a GPU each."),
    ] = None,
    hostfile: Annotated[
        str | None, typer.Option(help='File with a line "HOST slots=N" a node (deepspeed, mpirun).')
    ] = None,
    node_rank: Annotated[int | None, typer.Option(min=0, help="Number of this node (torchrun on several).")] = None,
    master_addr: Annotated[str | None, typer.Option(help="Address of the node that has rank 0.")] = None,
    master_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port there where the ranks meet.")] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(help="An option for the launcher, as it is: --argument=--partition=gpu. May be repeated."),
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Batch script (sbatch). Default: launch/slurm/train.sbatch.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="Train a run for each value; repeated, for each combination."),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show step and loss of the sweep's runs; start nothing.")
    ] = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Start `fmscale doctor --nodes` on all ranks, instead of the training.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and its environment; start nothing.")
    ] = False,
) -> None:
    """Start `fmscale train CONFIG` on all ranks.

    The first SIGUSR1, SIGTERM or Ctrl-C asks the ranks to save and end, the
    second ends them without.

    A sweep is one array of jobs under sbatch; other launchers train its runs
    one after another. The same command resumes what is not complete.

    Exits with the launcher's status. When ranks failed, the error.json of the
    first of them is shown last.
    """
    from fmscale.config import derive_batch, load_config
    from fmscale.launch.launchers import LAUNCHERS
    from fmscale.launch.programs import find_program
    from fmscale.launch.run import run_launch
    from fmscale.launch.sweep import read_sweep

    loaded = load_config(config, overrides or ())
    elements = read_sweep(sweep or (), loaded.train.run)
    folder = Path(loaded.train.folder)
    if summary:
        if not elements:
            raise ConfigError("--summary shows the runs of a sweep", remedy="Give the --sweep options of its launch.")
        show_sweep(folder, elements)
        return
    least, most = _range_of_nodes(nodes)
    options = {"nodes": most, "procs_per_node": procs_per_node, "hostfile": hostfile, "master_port": master_port}
    options |= {"launcher": with_ and with_.value}
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (*loaded.launch.arguments, *(argument or ()))
    settings = replace(loaded.launch, arguments=arguments, **given)  # type: ignore[arg-type]
    program = find_program("fmscale")  # every node must have fmscale at this path
    command = (program, "train", config, *(overrides or ()))
    request = _request(settings, (program, "doctor", "--nodes") if doctor else command)
    request = replace(request, node_rank=node_rank, master_addr=master_addr, script=script, least=least)
    launcher = settings.launcher or ("torchrun" if request.nodes > 1 or request.hosts else "local")
    _refuse_mixture(request, launcher, elements, doctor)
    # A wrong batch is refused here, before every rank would refuse it after a wait in the queue.
    runs = [load_config(config, (*(overrides or ()), *element.overrides)) for element in elements] or [loaded]
    for run in runs:
        for count in range(least or request.nodes, request.nodes + 1):
            derive_batch(run.batch, count * request.procs_per_node, place=run.place("batch"))
    if launcher == "sbatch" or not elements:
        requests = [replace(request, elements=tuple(element.overrides for element in elements))]
    else:
        requests = [replace(request, command=(*command, *element.overrides)) for element in elements]
    status = 0
    for one, run in zip(requests, runs, strict=False):
        place = folder / ("doctor" if doctor else run.train.run)
        start = LAUNCHERS[launcher](replace(one, logs=place / "logs"))
        if dry_run:
            say_lines(start.as_shell())
            continue
        _tell(start.summary + f", run {run.train.run}" * (len(requests) > 1))
        ended = run_launch(start, program, place, tell=_tell, more=one is not requests[-1])
        status = status or ended.status
        if ended.status and not doctor:
            show_failure(place, ended)
        if ended.stopped:
            break
    if len(requests) > 1 and not dry_run:
        show_sweep(folder, elements)
    if not dry_run:
        raise typer.Exit(status)


def _range_of_nodes(nodes: str | None) -> tuple[int | None, int | None]:
    """Least and most of MIN:MAX, or None and N. Raises ConfigError for any other text."""
    if nodes is None:
        return None, None
    least, colon, most = nodes.rpartition(":")
    if not most.isdecimal() or int(most) < 1 or (colon and not (least.isdecimal() and 1 <= int(least) < int(most))):
        raise ConfigError("--nodes is no number of nodes", found=nodes, remedy="Give a number, or a range such as 2:4.")
    return int(least) if colon else None, int(most)


def _refuse_mixture(request: "LaunchRequest", launcher: str, elements: "Sequence[Element]", doctor: bool) -> None:
    """Raise ConfigError for options that exclude each other."""
    if doctor and (elements or launcher == "sbatch"):
        remedy = "Leave --sweep out, and take --with srun where sbatch would queue the runs."
        raise ConfigError("--doctor starts the doctor once, while you wait", found=launcher, remedy=remedy)
    if request.least and launcher not in ("torchrun", "sbatch"):
        remedy = "Take --with torchrun, or --with sbatch, whose requeued job takes the nodes that are left."
        raise ConfigError(
            f"{launcher} cannot change the number of nodes",
            found=f"--nodes {request.least}:{request.nodes}",
            remedy=remedy,
        )
    if elements and launcher == "torchrun" and request.nodes > 1:
        raise ConfigError(
            "torchrun on several nodes cannot run a sweep: after a failure its nodes would be at different runs",
            found=f"{request.nodes} nodes",
            remedy="Take --with sbatch, srun, deepspeed or mpirun; or train one run after another by yourself.",
        )


def show_sweep(folder: Path, elements: "Sequence[Element]") -> None:
    """Print the last step and loss of each run, as far as this machine has its folder."""
    from fmscale.runtime.sinks.jsonl import read_jsonl

    rows = []
    for element in elements:
        place = folder / element.run
        metrics, outcome = place / "metrics.jsonl", place / "outcome.json"
        steps = [record for record in read_jsonl(metrics) if "loss" in record] if metrics.exists() else []
        last = steps[-1] if steps else {}
        complete = json.loads(outcome.read_text())["complete"] if outcome.exists() else None
        rows.append(
            {"run": element.run, **element.values, "step": last.get("step"), "loss": last.get("loss")}
            | {"complete": complete}
        )
    table(rows, False)


def _tell(words: str) -> None:
    _say(f"fmscale launch: {words}")


def _say(words: str) -> None:
    """Print to standard error; a closed terminal has no effect on the ranks."""
    with suppress(OSError):
        say_lines(words, err=True)


def _request(settings: "LaunchConfig", command: tuple[str, ...]) -> "LaunchRequest":
    """The request, with nodes and ranks as numbers. Raises ConfigError for a hostfile that cannot be used."""
    from fmscale.launch.environment import rank_environment
    from fmscale.launch.hostfile import choose_hosts, read_hostfile
    from fmscale.launch.launch import LaunchRequest

    nodes, procs = settings.nodes, settings.procs_per_node
    request = LaunchRequest(
        command=command,
        environment=rank_environment(settings.environment),
        arguments=settings.arguments,
        master_port=settings.master_port,
    )
    if settings.hostfile is not None:
        path = Path(settings.hostfile)
        hosts, procs = choose_hosts(read_hostfile(path), nodes, procs, path)
        return replace(request, nodes=len(hosts), procs_per_node=procs, hosts=hosts, hostfile=path)
    if procs is None:
        if settings.launcher in ("srun", "sbatch"):
            remedy = "Give --procs-per-node, or launch.procs_per_node: as many as a node has GPUs."
            raise ConfigError(f"{settings.launcher} must be told how many ranks run on a node", remedy=remedy)
        procs = 1
        # The import of torch takes 2 s; without one of these devices torch finds no GPU.
        if any(any(Path("/dev").glob(pattern)) for pattern in GPU_DEVICES):
            from torch import cuda

            procs = max(1, cuda.device_count())
    return replace(request, nodes=nodes or 1, procs_per_node=procs)


def show_failure(folder: Path, ended: "RankEnd") -> None:
    """Print the failure report of the first rank that failed, if there is a report."""
    from fmscale.runtime.failure import describe_failure, first_failure

    try:
        report = first_failure(folder)
    except FormatError as error:
        print_error(error)
        return
    _say(f"\nfmscale launch: ended with status {ended.status}")
    if report is not None:
        _say(describe_failure(report))
    elif not ended.stopped:
        _say(
            f"No rank wrote {folder}/error.json: they were killed, did not start, ran where this folder is another "
            "folder, or its disk is full. The lines above say more."
        )
