"""`fmscale doctor`: this machine, the nodes of a launch, or the abilities and speed of a store, and advice."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fmscale.cli.output import JsonOption, example, print_json, progress, record, say, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fmscale.store.doctor.doctor import Report
    from fmscale.train.machine.finding import Finding

_ABILITIES = {
    "put_if_absent": "creates exactly once under a race (needed to commit)",
    "read_after_write": "reads what was just written (needed to commit)",
    "range_read": "reads parts of objects (needed to load)",
    "list_after_write": "lists what was just written",
}

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale doctor",
        "fmscale launch my.yaml --doctor",
        "fmscale doctor /data/store",
        "fmscale doctor 's3://bucket/prefix?endpoint=http://127.0.0.1:8333&region=us-east-1'",
        "fmscale doctor gs://bucket --read-only --json",
    )
)
def doctor(
    store_url: Annotated[
        str | None, typer.Argument(metavar="[STORE_URL]", help="A path or a store URL. Default: this machine.")
    ] = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="As a rank of a launcher: all machines, and the links between the ranks.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing; measure on an object that is there.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Repeat the probe even if its result is recorded in the store.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.01, help="At most this long on each kind of request.")] = 2.0,
    json: JsonOption = False,
) -> None:
    """Examine this machine, or a store: what it can do, latency, throughput, and what to change.

    Without STORE_URL: GPUs, kernels, compilers, limits, shared memory, host name, disks and clock. `fmscale launch
    CONFIG --doctor` starts it with --nodes on all ranks. Exits with 1 if something fails.

    With STORE_URL: writes up to 20 objects of 16 MiB and removes them again; keeps the probe's result in
    `fmscale.json`. Exits with 1 if the store cannot be written safely (not with --read-only), with 2 if it cannot be
    reached.
    """
    if store_url is None:
        _examine_machines(nodes, json)
        return
    if nodes:
        raise ConfigError("--nodes examines machines, not a store", found=store_url, remedy="Leave one of them out.")
    from fmscale.store.doctor.doctor import examine

    with progress("examining", json=json) as bar:
        report = examine(
            store_url, read_only=read_only, again=again, seconds=seconds, progress=lambda _: bar.advance(1)
        )
    if json:
        print_json(asdict(report))
    else:
        _show(report)
    if not report.writable and not read_only:
        raise typer.Exit(1)


def _examine_machines(nodes: bool, json: bool) -> None:
    """Print the findings, on rank 0; exit with 1 if one of them is a failure."""
    from fmscale.runtime.world import read_world
    from fmscale.train.machine.examine import examine_machine, examine_nodes

    world = read_world()
    if not nodes and world.world_size > 1:
        remedy = "Give --nodes, or call it without a launcher."
        raise ConfigError("Several ranks would examine the same machine", found=world.launcher, remedy=remedy)
    findings = examine_nodes(world) if nodes else examine_machine()
    if world.rank == 0:
        _tell(findings, json)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _tell(findings: "Sequence[Finding]", json: bool) -> None:
    if json:
        print_json([asdict(finding) for finding in findings])
        return
    table([{"": one.status, "what": one.name, "found": one.found} for one in findings], False)
    for finding in findings:
        if finding.remedy:
            say(f"- {finding.name}: {finding.remedy}")


def _show(report: "Report") -> None:
    record({"store": report.url, "kind": report.implementation, "can be written": report.writable}, False)
    if report.capabilities is not None:
        abilities = asdict(report.capabilities)
        say()
        table([{"ability": what, "found": abilities[name]} for name, what in _ABILITIES.items()], False)
    if report.measurements:
        say()
        rows = [
            {
                "request": measurement.operation,
                "KiB": measurement.bytes / 1024,
                "streams": measurement.streams,
                "requests": measurement.requests,
                "p50 ms": measurement.p50_ms,
                "p99 ms": measurement.p99_ms,
                "MB/s": measurement.megabytes_per_second,
            }
            for measurement in report.measurements
        ]
        table(rows, False)
    say()
    for sentence in report.advice:
        say(f"- {sentence}")
