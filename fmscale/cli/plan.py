"""`fmscale plan`: the numbers of a run at a number of ranks, and what would fail, before it is started."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import ConfigArgument, ConfigCommand, Overrides
from fmscale.cli.output import JsonOption, example, human_bytes, human_seconds, print_error, print_json, record, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.config import Config
    from fmscale.train.preflight.forecast import Forecast
    from fmscale.train.preflight.preflight import Preflight

app = typer.Typer()


@app.command(
    cls=ConfigCommand,
    epilog=example(
        "fmscale plan run/laptop train.steps=100 --world 2", "fmscale plan my.yaml --world 64 --mfu 0.4 --device H100"
    ),
)
def plan(
    config: ConfigArgument,
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, help="Ranks that the run would have.")] = 1,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1.0, help="Speed of all ranks together, for what reads it needs.")
    ] = None,
    mfu: Annotated[float | None, typer.Option(min=0.001, max=1.0, help="Or its share of the peak of --device.")] = None,
    device: Annotated[str, typer.Option(help="Device whose peak --mfu means, such as H100.")] = "",
    with_config: Annotated[bool, typer.Option("--config", help="Also every key of the config with its value.")] = False,
    json: JsonOption = False,
) -> None:
    """Show everything that would fail, and a run's derived numbers.

    Starts nothing and writes nothing. Exits with 2 if something would fail.
    """
    from fmscale.config import as_tree, as_yaml, load_config
    from fmscale.train.preflight.preflight import check_run

    _check_speed(tokens_per_second, mfu, device)
    loaded = load_config(config, overrides or ())
    found = check_run(loaded, world, tokens_per_second=tokens_per_second, mfu=mfu, device=device)
    if json:
        print_json(
            {
                "config": as_tree(loaded),
                "derived": asdict(found.forecast),
                "sources": [asdict(source) for source in found.sources],
                "begins": found.begins,
                "warnings": found.warnings,
                "notes": found.notes,
                "problems": [{"cause": p.cause, "found": p.found, "remedy": p.remedy} for p in found.problems],
            }
        )
    else:
        _show(loaded, found)
        if with_config:
            typer.echo(f"\n{as_yaml(loaded).rstrip()}")
    if found.problems:
        raise typer.Exit(2)


def _check_speed(tokens_per_second: float | None, mfu: float | None, device: str) -> None:
    from fmscale.config.peaks import PEAKS, peak_flops

    if tokens_per_second is not None and mfu is not None:
        raise ConfigError(
            "--tokens-per-second and --mfu both say how fast the run is",
            found=(tokens_per_second, mfu),
            remedy="Give one of them.",
        )
    if mfu is not None and peak_flops(device) is None:
        raise ConfigError(
            "--mfu is a share of a device's peak, and this device's is not known",
            found=device or "no --device",
            remedy=f"Give --device as one of {', '.join(PEAKS)}, or --tokens-per-second.",
        )


def _show(config: "Config", found: "Preflight") -> None:
    """Print problems first, then the numbers."""
    if found.problems:
        typer.echo(f"{len(found.problems)} to correct before this run can start:", err=True)
    for problem in found.problems:
        print_error(problem)
    for kind, texts in (("warning", found.warnings), ("note", found.notes)):
        for text in texts:
            typer.echo(f"{kind}: {text}", err=True)
    if found.problems or found.warnings or found.notes:
        typer.echo(err=True)
    made = found.forecast
    record(_numbers(config, made, found.begins), json=False)
    if made.stages:
        typer.echo()
        table(_stage_rows(config, made), json=False, title="model state on each rank, by ZeRO stage")
    if found.sources:
        typer.echo()
        table([asdict(source) for source in found.sources], json=False, title="sources")


def _numbers(config: "Config", made: "Forecast", begins: str) -> dict[str, Any]:
    """The derived numbers for people, in the order in which one follows from the other."""
    values: dict[str, Any] = {"ranks": made.world}
    if batch := made.batch:
        places = f" in {batch.global_batch + batch.padding}" if batch.padding else ""
        fill = f", {batch.padding} of them filler" if batch.padding else ""
        values["batch"] = (
            f"{batch.global_batch} rows{places} = micro_batch {batch.micro_batch} x accumulation {batch.accumulation} "
            f"x {batch.dp_size} ranks{fill}"
        )
    values |= {
        "vocabulary": made.vocab_size,
        "parameters": made.parameters,
        "tokens a step": made.tokens_per_step,
        "steps": made.steps,
        "tokens": made.tokens,
        "FLOPs a token": made.flops_per_token,
        "FLOPs": made.flops and f"{made.flops:.3g}",
    }
    if made.checkpoint_bytes and made.checkpoint_bytes_per_rank:
        kept = config.checkpoint.keep_last
        values["checkpoint"] = (
            f"{human_bytes(made.checkpoint_bytes)}, {human_bytes(made.checkpoint_bytes_per_rank)} a rank, "
            f"{human_bytes(kept * made.checkpoint_bytes)} for the last {kept}"
        )
    values["prefetch"] = f"{human_bytes(made.prefetch_bytes)} a rank at most" + (
        f", {made.prefetch_steps} steps ahead" if made.prefetch_steps else ""
    )
    if made.tokens_per_second and made.read_bytes_per_second:
        values["tokens/s"] = made.tokens_per_second
        values["reads needed"] = f"{made.read_bytes_per_second / 1e6:.3g} MB/s, all ranks together"
        values["duration"] = made.seconds and human_seconds(made.seconds)
    else:
        values["reads needed"] = "follow from a speed: give --tokens-per-second, or --mfu and --device"
    if begins:
        values["begins"] = begins
    return values


def _stage_rows(config: "Config", made: "Forecast") -> list[dict[str, Any]]:
    rows = []
    for one in made.stages:
        sizes = {name: human_bytes(size) for name, size in asdict(one).items() if name != "stage"}
        if not config.train.offload_optimizer:
            del sizes["host"]
        chosen = " *" if one.stage == config.train.zero_stage else ""
        rows.append({"stage": f"{one.stage}{chosen}", **sizes})
    return rows
