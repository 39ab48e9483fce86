"""`fmscale plan`: the numbers of a run on a number of ranks, and its problems, before it starts."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import ConfigArgument, ConfigCommand, Overrides
from fmscale.cli.output import (
    JsonOption,
    example,
    human_bytes,
    human_seconds,
    print_error,
    print_json,
    record,
    say,
    say_lines,
    table,
)
from fmscale.errors import ConfigError
from fmscale.text import clean_tree

if TYPE_CHECKING:
    from fmscale.config import Config
    from fmscale.train.preflight.preflight import Preflight, SourceFacts

app = typer.Typer()


@app.command(
    cls=ConfigCommand,
    epilog=example(
        "fmscale plan run/laptop train.steps=100 --world 2",
        "fmscale plan my.yaml --world 64 --mfu 0.4 --device H100 --device-memory 80GB --host-memory 2TB",
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
    device_memory: Annotated[
        str | None,
        typer.Option(help="Memory of a device, such as 80GB, for the stage to take; a GPU here tells its own."),
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="Memory of a node, such as 2TB.")] = None,
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
    preflight = check_run(
        loaded,
        world,
        tokens_per_second=tokens_per_second,
        mfu=mfu,
        device=device,
        device_memory=_size(device_memory, "--device-memory"),
        host_memory=_size(host_memory, "--host-memory"),
    )
    if json:
        print_json(
            {
                "config": clean_tree(as_tree(loaded)),
                "derived": asdict(preflight.forecast),
                "advice": asdict(preflight.advice),
                "sources": [asdict(source) for source in preflight.sources],
                "order_changes": preflight.changes,
                "begins": preflight.begins,
                "warnings": preflight.warnings,
                "notes": preflight.notes,
                "problems": [{"cause": p.cause, "found": p.found, "remedy": p.remedy} for p in preflight.problems],
            }
        )
    else:
        _show(loaded, preflight)
        if with_config:
            say_lines(f"\n{as_yaml(clean_tree(as_tree(loaded))).rstrip()}")
    if preflight.problems:
        raise typer.Exit(2)


def _size(text: str | None, option: str) -> int | None:
    """Bytes of a size such as 80GB or 74.5GiB."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", text)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{option} is no size of a memory", found=text, remedy="Give it as 80GB, 74.5GiB or 2TB.")
    unit: int = (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ")
    return round(float(found[1]) * unit)


def _check_speed(tokens_per_second: float | None, mfu: float | None, device: str) -> None:
    from fmscale.config.peaks import PEAKS, peak_flops

    if tokens_per_second is not None and mfu is not None:
        found, remedy = (tokens_per_second, mfu), "Give one of them."
        raise ConfigError("--tokens-per-second and --mfu both say how fast the run is", found=found, remedy=remedy)
    if mfu is not None and peak_flops(device) is None:
        raise ConfigError(
            "--mfu is a share of a device's peak, and this device's is not known",
            found=device or "no --device",
            remedy=f"Give --device as one of {', '.join(PEAKS)}, or --tokens-per-second.",
        )


def _show(config: "Config", preflight: "Preflight") -> None:
    """Print problems first, then the numbers."""
    if preflight.problems:
        say(f"{len(preflight.problems)} to correct before this run can start:", err=True)
    for problem in preflight.problems:
        print_error(problem)
    for kind, texts in (("warning", preflight.warnings), ("note", preflight.notes)):
        for text in texts:
            say(f"{kind}: {text}", err=True)
    if preflight.problems or preflight.warnings or preflight.notes:
        say(err=True)
    forecast = preflight.forecast
    record(_numbers(config, preflight), json=False)
    if forecast.stages:
        say()
        table(_stage_rows(config, preflight), json=False, title="memory and traffic of a rank, by ZeRO stage")
    if preflight.sources:
        say()
        table([_source_row(source) for source in preflight.sources], json=False, title="sources")
    if preflight.changes:
        say()
        table(preflight.changes, json=False, title="changes of the order")


def _numbers(config: "Config", preflight: "Preflight") -> dict[str, Any]:
    """The derived numbers for people, each after the numbers that it follows from."""
    forecast, advice, begins = preflight.forecast, preflight.advice, preflight.begins
    values: dict[str, Any] = {"ranks": forecast.world}
    if batch := forecast.batch:
        shape = (
            f"micro_batch {batch.micro_batch} x accumulation {batch.accumulation} x {batch.dp_size} ranks"
            if batch.forward_tokens is None
            else f"flat forwards of {batch.forward_tokens:,} tokens or less on {batch.dp_size} ranks"
        )
        places = f" in {batch.global_batch + batch.padding}" if batch.padding else ""
        fill = f", {batch.padding} of them filler" if batch.padding else ""
        of = "samples in" if batch.forward_tokens else f"rows{places} ="
        values["batch"] = f"{batch.global_batch} {of} {shape}{fill}"
    values |= {
        "vocabulary": forecast.vocab_size,
        "parameters": forecast.parameters,
        **({"frozen parameters": forecast.frozen} if forecast.frozen else {}),
        "tokens a step": forecast.tokens_per_step,
        "steps": forecast.steps,
        "tokens": forecast.tokens,
        "FLOPs a token": forecast.flops_per_token,
        "FLOPs": forecast.flops and f"{forecast.flops:.3g}",
    }
    if forecast.checkpoint_bytes and forecast.checkpoint_bytes_per_rank:
        count = config.checkpoint.keep_last
        values["checkpoint"] = (
            f"{human_bytes(forecast.checkpoint_bytes)}, {human_bytes(forecast.checkpoint_bytes_per_rank)} a rank, "
            f"{human_bytes(count * forecast.checkpoint_bytes)} for the last {count}"
        )
    values["prefetch"] = f"{human_bytes(forecast.prefetch_bytes)} a rank at most" + (
        f", {forecast.prefetch_steps} steps ahead" if forecast.prefetch_steps else ""
    )
    units = forecast.prefetch_bytes - forecast.decoded_bytes
    values["host memory"] = (
        f"units {human_bytes(units)}, decoded ahead {human_bytes(forecast.decoded_bytes)}, pinned 0 B"
    )
    if forecast.snapshot_bytes_per_node and advice.host_bytes:
        values["host memory a node"] = (
            f"{human_bytes(advice.host_bytes)}, of it snapshots {human_bytes(forecast.snapshot_bytes_per_node)}"
        )
    values["activations"] = forecast.activations and f"{human_bytes(forecast.activations)} a rank"
    values["advised stage"] = advice.reason
    if forecast.tokens_per_second and forecast.read_bytes_per_second:
        values["tokens/s"] = forecast.tokens_per_second
        values["reads needed"] = f"{forecast.read_bytes_per_second / 1e6:.3g} MB/s, all ranks together"
        values["duration"] = forecast.seconds and human_seconds(forecast.seconds)
    else:
        values["reads needed"] = "follow from a speed: give --tokens-per-second, or --mfu and --device"
    if begins:
        values["begins"] = begins
    return values


def _stage_rows(config: "Config", preflight: "Preflight") -> list[dict[str, Any]]:
    stages, activations = preflight.forecast.stages, preflight.forecast.activations
    rows = []
    for needs, fits in zip(stages, preflight.advice.fits, strict=True):
        chosen = " *" if needs.stage == config.train.zero_stage else ""
        row: dict[str, Any] = {"stage": f"{needs.stage}{chosen}", "state": human_bytes(needs.device)}
        row["with activations"] = activations and human_bytes(needs.device + activations)
        if config.train.offload_optimizer:
            row["host"] = human_bytes(needs.host)
        row["sent a step"] = human_bytes(needs.wire)
        if any(each.between for each in stages):
            row["between nodes a step"] = human_bytes(needs.between)
        rows.append({**row, "fits": fits})
    return rows


def _source_row(source: "SourceFacts") -> dict[str, Any]:
    return {**asdict(source), "epoch_bytes": source.epoch_bytes and human_bytes(source.epoch_bytes)}
