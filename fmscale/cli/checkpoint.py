"""`fmscale checkpoint`: lists, checks and exports the checkpoints of a run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import CheckpointArgument
from fmscale.cli.output import JsonOption, example, human_bytes, print_json, progress, record, say, table
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.checkpoint.catalog import CheckpointEntry
    from fmscale.checkpoint.checkpoint import Checkpoint

app = typer.Typer(
    name="checkpoint",
    no_args_is_help=True,
    help="Look at checkpoints, check and export them.",
    epilog=example("fmscale checkpoint list runs/store"),
)


@app.command("list", epilog=example("fmscale checkpoint list runs/store"))
def list_(
    store: Annotated[str, typer.Argument(metavar="STORE[#RUN]", help="A store, and one run of it.")],
    json: JsonOption = False,
) -> None:
    """List the checkpoints of a run, or of all runs of a store."""
    from fmscale.checkpoint.catalog import list_checkpoints, warn_of_newer
    from fmscale.store.log.runs import require_run
    from fmscale.store.open import open_store

    url, _, run = store.partition("#")
    backend = open_store(url, read_only=True)
    if run:
        require_run(backend, run)
    runs = [run] if run else backend.list_names("runs")
    rows = []
    for name in runs:
        found = list_checkpoints(backend, name)
        warn_of_newer(backend, name, found)
        rows += [{"run": name, **_row(entry, json)} for entry in found]
    if not rows and not json:
        say(f"{backend.url} has no checkpoints" + (f" of run {run}." if run else "."))
        return
    table(rows, json)


@app.command(epilog=example("fmscale checkpoint show runs/store#run@1000"))
def show(address: CheckpointArgument, json: JsonOption = False) -> None:
    """Show a checkpoint's tensors and what was saved with them."""
    from fmscale.checkpoint.checkpoint import open_checkpoint

    opened = open_checkpoint(address)
    tensors = _tensors(opened, json)
    if json:
        print_json({**_row(opened.found, json), "meta": opened.meta, "tensors": tensors})
        return
    base = {"base": opened.meta["base"]["address"]} if "base" in opened.meta else {}
    record({**_row(opened.found, json), **base, "meta": ", ".join(opened.meta)}, json)
    table(tensors, json, title="\ntensors")


@app.command(epilog=example("fmscale checkpoint verify runs/store#run"))
def verify(
    address: CheckpointArgument,
    mark: Annotated[
        bool, typer.Option(help="Record that it is whole: retention never deletes the last whole checkpoint.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Read every byte of a checkpoint, check it, and name what is damaged, truncated or missing.

    The exit status is 0 if all is well and 1 if there are problems.
    """
    from fmscale.checkpoint.catalog import newest, parse_address
    from fmscale.checkpoint.format.names import run_log
    from fmscale.checkpoint.persist.retention import mark_verified
    from fmscale.checkpoint.read.verify import size_of, verify
    from fmscale.store.open import open_store

    url, run, which = parse_address(address)
    backend = open_store(url, read_only=not mark)
    checkpoint = newest(backend, run, which)
    with progress(f"verify step {checkpoint.step}", size_of(backend, checkpoint), json=json, unit="bytes") as bar:
        problems, checked = verify(backend, checkpoint, bar.advance)
    if mark and checked and not problems and not checkpoint.verified:
        mark_verified(run_log(backend, run), checkpoint.entry)
    rows = [{"object": problem.key, "chunk": problem.chunk, "problem": problem.what} for problem in problems]
    if json:
        print_json({"step": checkpoint.step, "entry": checkpoint.entry, "checked": checked, "problems": rows})
    elif problems:
        table(rows, json)
    else:
        how = "every byte is as it was saved" if checked else "all there, but it was saved without checksums"
        say(f"Step {checkpoint.step} of run {run}: {how}.")
    if problems:
        raise typer.Exit(1)


@app.command(epilog=example("fmscale checkpoint export runs/store#run --to exported --format hf"))
def export(
    address: CheckpointArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    format: Annotated[str, typer.Option("--format", help="hf, safetensors (all states) or dcp.")] = "hf",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Type of the weights, such as bfloat16; as saved or imported by default."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a checkpoint for others: Hugging Face, plain safetensors, or torch.distributed.checkpoint."""
    from fmscale.checkpoint.checkpoint import open_checkpoint
    from fmscale.checkpoint.export.export import export_checkpoint
    from fmscale.exchange.export import hf_files

    if format not in ("hf", "safetensors", "dcp"):
        raise ConfigError("no such format", found=format, remedy="Use hf, safetensors or dcp.")
    opened = open_checkpoint(address)
    tensors = [tensor for tensor in opened.manifest.tensors if format != "hf" or tensor.state == "weight"]
    hf_parts = hf_files(opened, dtype) if format == "hf" else {}
    with progress("export", sum(tensor.nbytes for tensor in tensors), json=json, unit="bytes") as bar:
        paths = export_checkpoint(
            opened,
            to,
            format=format,  # type: ignore[arg-type]
            dtype=dtype,
            progress=bar.advance,
            **hf_parts,
        )
    table([{"file": str(path), "bytes": _size(path.stat().st_size, json)} for path in paths], json)


def _row(entry: "CheckpointEntry", json: bool) -> dict[str, Any]:
    """A checkpoint as a line of a table, or as JSON."""
    when = entry.time if json else datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {
        "step": entry.step,
        "entry": entry.entry,
        "time": when,
        "ranks": entry.world_size,
        "written": _size(entry.bytes, json),
        "referenced": _size(entry.referenced, json),
        "verified": entry.verified,
    }


def _tensors(opened: "Checkpoint", json: bool) -> list[dict[str, Any]]:
    """A line for each logical tensor, with its states."""
    lines = []
    for name in opened.names:
        states = opened.states(name)
        infos = [opened.info(name, state) for state in states]
        lines.append(
            {
                "name": name,
                "shape": list(infos[0].shape) if json else " x ".join(map(str, infos[0].shape)) or "1",
                "states": states if json else ", ".join(f"{s} {i.dtype}" for s, i in zip(states, infos, strict=True)),
                "bytes": _size(sum(info.nbytes for info in infos), json),
            }
        )
    return lines


def _size(size: int, json: bool) -> int | str:
    return size if json else human_bytes(size)
