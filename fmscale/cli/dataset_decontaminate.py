"""`fmscale dataset decontaminate`: the documents of a task that a training dataset contains."""

from typing import Annotated

import typer

from fmscale.cli.address import DatasetArgument, DatasetOption, StoreOption, find_dataset
from fmscale.cli.output import JsonOption, example, print_json, progress, record, say, table

app = typer.Typer()

SHOWN = 20
"""Pairs of documents that are shown on the screen."""


@app.command(
    epilog=example(
        "fmscale dataset decontaminate runs/store/docs --task task/arithmetic",
        "fmscale dataset decontaminate runs/store/docs --task exam.yaml --ngram 8 --mask",
    )
)
def decontaminate(
    task: Annotated[str, typer.Option("--task", help="A task in YAML, or a shipped task.")],
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    split: Annotated[str, typer.Option("--split", help="Split of the dataset.")] = "train",
    ngram: Annotated[int, typer.Option("--ngram", help="Words of an n-gram.")] = 13,
    mask: Annotated[bool, typer.Option("--mask", help="Store a mask of the documents that were found.")] = False,
    json: JsonOption = False,
) -> None:
    """Find the task's documents in a dataset, by n-grams of words that both have.

    Words are compared in lower case and without punctuation. Each pair of documents is named and its common n-grams are
    counted. The exit status is 0, whatever was found. A mask leaves documents out of a new run, as of `dataset mask`.
    """
    from fmscale.data.views.mask import document_id, find_documents, make_mask
    from fmscale.infer.tasks import find_overlap, load_task
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    opened = open_dataset(open_store(url, read_only=not mask), name)
    loaded = load_task(task)
    total = sum(commit.totals[split].documents for commit in opened.commits() if split in commit.totals)
    with progress("decontaminate", total, json=json) as bar:
        result = find_overlap(opened, loaded, split=split, ngram=ngram, advance=bar.advance)
    digest = None
    if mask and result.ids:
        documents = find_documents(opened, split=split, ids=[document_id(id) for id in result.ids])
        digest = make_mask(opened, documents, split=split)
    summary = {
        "task": loaded.name,
        "task documents": result.asked,
        "found": len({pair.question for pair in result.found}),
        "too short": len(result.short),
        "dataset documents": result.documents,
        "found in": len(result.ids),
        "mask": digest,
    }
    if json:
        named = {"found_documents": [pair._asdict() for pair in result.found], "too_short_documents": result.short}
        print_json({**{key.replace(" ", "_"): value for key, value in summary.items()}, **named})
        return
    record(summary, json)
    table([pair._asdict() for pair in result.found[:SHOWN]], json, title="\npairs") if result.found else None
    if len(result.found) > SHOWN:
        say(f"{len(result.found):,} pairs in all; --json names them")
