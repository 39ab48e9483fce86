"""`fmscale score`: a reward model on held-out pairs and rankings."""

from dataclasses import asdict
from typing import Annotated

import typer

from fmscale.cli.address import CheckpointArgument, find_dataset
from fmscale.cli.dataset_derive import derive_model_column
from fmscale.cli.model import Device, Precision, Threads, open_model
from fmscale.cli.output import JsonOption, example, progress, record

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale score runs/store#reward --dataset rankings.base --split heldout",
        "fmscale score runs/store#reward@500 --dataset rankings.base --split train --column reward",
    )
)
def score(
    address: CheckpointArgument,
    dataset: Annotated[
        str | None, typer.Option(help="A rendered dataset of the store, or STORE/DATASET; the run's first by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "heldout",
    records: Annotated[int | None, typer.Option(min=1, help="At most so many records, the first ones stored.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Also store the scores of the split as a derived column of this name.")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    json: JsonOption = False,
) -> None:
    """Score pairs and rankings with a reward model, and count the pairs in the right order.

    The accuracy is the mean over records of the share of a record's pairs whose scores are in its order.
    """
    from fmscale.infer.rankings import score_rankings
    from fmscale.store.open import open_store

    trained = open_model(address, device, precision)
    url, backend, name = trained.backend.url, trained.backend, dataset or trained.dataset
    if "/" in name:
        url, name = find_dataset(name, None, None)
        backend = open_store(url, read_only=True)
    with progress("score", json=json) as bar:
        result = score_rankings(
            trained.model,
            backend,
            name,
            split,
            tokenizer=trained.tokenizer.digest,
            limit=records,
            threads=threads,
            progress=lambda done, total: bar.update("score", done, total),
        )
    shown = {"run": trained.run, "step": trained.step, "dataset": name, "split": split, **asdict(result)}
    if column is not None:
        made = derive_model_column(url, name, split, column, "scores", address, device, precision, threads, json)
        shown |= {"column": column, "folders": made["folders"]}
    record(shown, json)
