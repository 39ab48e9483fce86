"""`fmscale dataset derive`: makes a derived column of a dataset."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fmscale.cli.address import DatasetArgument, DatasetOption, StoreOption, find_dataset
from fmscale.cli.model import Device, Precision, Threads
from fmscale.cli.output import JsonOption, example, print_json, progress, record, say, table
from fmscale.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fmscale.data.samples.derive import Derived
    from fmscale.data.samples.protocol import Spec
    from fmscale.store.backends.protocol import Backend

app = typer.Typer()

SHOWN = 5
"""Bad records that are named on the screen."""

SpecOption = Annotated[str | None, typer.Option("--spec", help="A spec in YAML, as data.spec of a config has it.")]


@app.command(
    epilog=example(
        "fmscale dataset derive runs/store/docs --column size --spec '{kind: text, field: text, tokenizer: bytes}'",
        "fmscale dataset derive runs/store/docs --column size --config train.yaml",
        "fmscale dataset derive runs/store/pairs.base --column reference --with base@0 --precision bf16",
    )
)
def derive(
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    column: Annotated[
        str,
        typer.Option(
            "--column",
            help="The column: size, lengths of samples in tokens; reference, log-probs of rendered texts under --with.",
        ),
    ] = "size",
    spec: SpecOption = None,
    config: Annotated[
        str | None, typer.Option("--config", help="A config whose sources of the dataset have the specs.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split. Default: train, or the splits of the config's sources.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="size: processes. Default: one a core.")] = None,
    run: Annotated[
        str | None,
        typer.Option("--with", metavar="RUN[@STEP]", help="reference: a run of the store; its newest step by default."),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    json: JsonOption = False,
) -> None:
    """Make a column with a value for each record. A job that was killed goes on when it is run again.

    The sizes of records say how samples are packed before any record is read. A record of which no sample can be made
    has size 0 and is left out of training. With the column reference, training on preferences runs no reference:
    objective.reference names the same run and step, and train.precision the same precision.
    """
    from fmscale.data.samples.rendered import REFERENCE
    from fmscale.data.samples.sizes import SIZE
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    if (column == REFERENCE) != (run is not None) or column not in (SIZE, REFERENCE):
        raise ConfigError(
            "no such column can be derived" if column not in (SIZE, REFERENCE) else "--with names a reference's run",
            found=f"--column {column}" + (f" --with {run}" if run else ""),
            remedy=f"Write --column {SIZE}, or --column {REFERENCE} --with RUN@STEP.",
        )
    if run is not None:
        split, source = split or "train", f"{url}#{run}"
        record(derive_model_column(url, name, split, column, "logps", source, device, precision, threads, json), json)
        return
    if (spec is None) == (config is None):
        raise ConfigError("a spec says what the size of a record is", remedy="Give either --spec or --config.")
    open_dataset(open_store(url, read_only=True), name)  # so that a mistyped store is not made
    specs = [(split or "train", read_spec(url, spec))] if spec else _specs(url, name, str(config), split)
    results = [derive_column(url, name, part, each, workers, json) for part, each in specs]
    if json:
        print_json(results)


def derive_column(
    store: str, dataset: str, split: str, spec: "Spec", workers: int | None, json: bool
) -> dict[str, Any]:
    """Derive the sizes of a split with a progress bar, and return the result as JSON values; print it unless `json`."""
    from fmscale.data.samples.derive import derive_sizes

    with progress("derive", json=json) as bar:
        result = derive_sizes(
            store, dataset, split, spec, workers=workers, progress=lambda done, total: bar.update("derive", done, total)
        )
    if not json:
        _show(result, dataset, split)
    return {"dataset": dataset, "split": split, **asdict(result)}


def derive_model_column(
    store: str,
    dataset: str,
    split: str,
    column: str,
    kind: Literal["logps", "scores"],
    address: str,
    device: str,
    precision: str | None,
    threads: int | None,
    json: bool,
) -> dict[str, Any]:
    """Derive the values that the model at STORE#RUN[@STEP] gives the texts of a split, with a progress bar, and return
    the result as JSON values.
    """
    from fmscale.checkpoint.checkpoint import open_in
    from fmscale.data.samples.rendered import values_maker
    from fmscale.infer.load import open_trained
    from fmscale.infer.score import logps, scores
    from fmscale.infer.value_columns import derive_values
    from fmscale.runtime.device import pick_device
    from fmscale.runtime.world import read_world

    chosen = pick_device(read_world(), device)
    precision = precision or ("fp32" if chosen == "cpu" else "bf16")
    trained = open_trained(address, device=chosen, precision=precision)
    weights = open_in(trained.backend, trained.run, trained.step).found.body["manifest"]["digest"]
    with progress(column, json=json) as bar:
        result = derive_values(
            _writable(store),
            dataset,
            split,
            column,
            values_maker(kind, weights, precision),
            trained.model,
            {"logps": logps, "scores": scores}[kind],
            tokenizer=trained.tokenizer.digest,
            threads=threads,
            progress=lambda done, total: bar.update(column, done, total),
        )
    shown = {"dataset": dataset, "split": split, "column": column, "with": f"{trained.run}@{trained.step}"}
    return {**shown, "precision": precision, **asdict(result)}


def read_spec(store: str, text: str) -> "Spec":
    """The spec in the YAML of --spec; the store then has its tokenizer. Raises ConfigError."""
    from typing import get_type_hints

    from fmscale.config.data import DataConfig
    from fmscale.config.reader.convert import convert
    from fmscale.config.reader.tree import parse
    from fmscale.data.samples.specs import make_spec

    made = convert(parse(text, "--spec", lines=False), get_type_hints(DataConfig)["spec"], "spec", {})
    if made is None:
        raise ConfigError("--spec is empty", found=text, remedy="Write --spec '{kind: text, field: text}'.")
    # The longest forward: sizes are taken before a cut.
    return make_spec(made, _writable(store), limit=2**31)


def _specs(store: str, dataset: str, path: str, split: str | None) -> "list[tuple[str, Spec]]":
    """(split, spec) of each source of the dataset in a config."""
    from fmscale.config.reader.load import load_config
    from fmscale.data.samples.specs import open_spec
    from fmscale.train.data import training_sources

    config, backend = load_config(path), _writable(store)
    data = config.data
    sources = training_sources(config, backend, data.sources)
    views = [s.view for s in sources if s.view.dataset == dataset and s.view.split in (split or s.view.split,)]
    if not views:
        raise DataError(
            f"No source of {path} is the dataset {dataset}" + (f" with split {split}" if split else ""),
            found=sorted({f"{source.dataset}, {source.split}" for source in data.sources}),
            remedy="Name a dataset of the config, or give --spec.",
        )
    return [(part, open_spec(backend, text)) for part, text in dict.fromkeys((v.split, v.spec) for v in views)]


def _writable(store: str) -> "Backend":
    from fmscale.store.doctor.probe import require_writable
    from fmscale.store.open import open_store

    backend = open_store(store)
    require_writable(backend)
    return backend


def _show(result: "Derived", dataset: str, split: str) -> None:
    if not result.new:
        say(f"{dataset} has this column already; nothing was done.")
    values = {
        "dataset": dataset,
        "split": split,
        "commits": list(result.commits),
        "records": result.records,
        "tokens": result.tokens,
        "mean": result.tokens / max(1, result.records),
        "largest": result.largest,
        "empty": result.empty,
        "bad": result.bad,
    }
    if result.resumed:
        values["segments done before"] = result.resumed
    record(values, json=False)
    for name, reason in result.names[:SHOWN]:
        say(f"bad: {name}: {reason}")
    if len(result.names) > SHOWN:
        say(f"bad: {result.bad:,} records in all; --json names them")
    if result.bad:
        folders = ", ".join(result.folders)
        say(f"After a repair of damaged records, delete {folders} and derive the column again.", err=True)
    ends = [(2**i, 2 ** (i + 1) - 1, count) for i, count in enumerate(result.histogram) if count]
    table([{"sizes": f"{low:,} to {high:,}", "records": count} for low, high, count in ends], json=False)
