"""`fmscale adapter`: adapters as PEFT's files, both ways, and merged into whole weights."""

from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.address import CheckpointArgument
from fmscale.cli.output import JsonOption, example, print_json, progress, say, table
from fmscale.errors import ConfigError

app = typer.Typer(
    name="adapter",
    no_args_is_help=True,
    help="Exchange adapters with PEFT, and merge them.",
    epilog=example("fmscale adapter export runs/store#lora --to adapter"),
)
TYPES = {"fp32": "float32", "bf16": "bfloat16"}


@app.command(epilog=example("fmscale adapter export runs/store#lora --to adapter --base-model ./base"))
def export(
    address: CheckpointArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    base_model: Annotated[
        str | None, typer.Option(help="Name or folder by which PEFT finds the base; its run by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write an adapter for PEFT: adapter_config.json and adapter_model.safetensors.

    `fmscale checkpoint export --format hf` writes the base for it.
    """
    from fmscale.checkpoint.base import BASE
    from fmscale.infer.adapters import export_peft, open_adapter

    opened = open_adapter(address)
    paths = export_peft(opened, to, base_model or opened.checkpoint.meta[BASE]["address"])
    table([{"file": str(path), "bytes": path.stat().st_size} for path in paths], json)


@app.command("import", epilog=example("fmscale adapter import adapter/ --store runs/store --run lora --base base"))
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder with adapter_config.json and adapter_model.safetensors.")],
    store: Annotated[str, typer.Option(help="Store of the new run.")],
    run: Annotated[str, typer.Option(help="Name of the new run.")],
    base: Annotated[str, typer.Option(metavar="RUN[@STEP]", help="Its base: a run of --store, or STORE#RUN[@STEP].")],
    json: JsonOption = False,
) -> None:
    """Make an adapter run of PEFT's files, for generation, evaluation and further training.

    The base stays a run of its own, is named by its digest, and is pinned.
    """
    from fmscale.checkpoint.checkpoint import open_checkpoint
    from fmscale.infer.adapters import import_peft
    from fmscale.store.open import open_store

    opened = open_checkpoint(base if "#" in base else f"{store}#{base}")
    entry = import_peft(folder, open_store(store), run, opened)
    if json:
        print_json({"run": run, "step": entry.step, "bytes": entry.bytes, "base": f"{opened.run}@{opened.step}"})
        return
    say(f"Run {run} is the adapter on {opened.run}@{opened.step}: `fmscale generate {store}#{run}`.")


@app.command(epilog=example("fmscale adapter merge runs/store#lora --run merged"))
def merge(
    address: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Name of the new run, in the same store.")],
    dtype: Annotated[str, typer.Option(help="Type of its weights: fp32, or bf16, which loses a part.")] = "fp32",
    json: JsonOption = False,
) -> None:
    """Make a run of whole weights: base and adapter, added in fp32.

    It begins other runs (train.init) and is exported like an imported model. bf16 rounds small changes of large weights
    away: the part of each layer's change that was lost is told.
    """
    from fmscale.checkpoint.catalog import parse_address
    from fmscale.infer.adapters import merge as join
    from fmscale.infer.adapters import open_adapter
    from fmscale.store.open import open_store

    if dtype not in TYPES:
        raise ConfigError("no such type of weights", found=dtype, remedy="Take fp32 or bf16.")
    opened = open_adapter(address)
    total = sum(tensor.nbytes for tensor in opened.base.manifest.tensors if tensor.state == "weight")
    with progress("merge", total, json=json, unit="bytes") as bar:
        lost = join(opened, run, TYPES[dtype], open_store(parse_address(address)[0]), bar.advance)
    most, mean = max(lost, key=lambda name: lost[name]), sum(lost.values()) / len(lost)
    if json:
        print_json({"run": run, "dtype": dtype, "lost_mean": mean, "lost_max": lost[most], "lost": lost})
        return
    say(f"Run {run} has the weights of {opened.checkpoint.run}@{opened.checkpoint.step}, merged, in {dtype}.")
    if dtype != "fp32":
        say(f"{dtype} lost {mean:.1%} of the adapter's change on average over its layers, {lost[most]:.1%} in {most}.")
