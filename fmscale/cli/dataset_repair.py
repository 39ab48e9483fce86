"""`fmscale dataset repair`: masks documents that a dataset holds twice, or in both splits."""

from typing import Annotated

import typer

from fmscale.cli.address import DatasetArgument, DatasetOption, StoreOption, find_dataset
from fmscale.cli.output import JsonOption, example, progress, record

app = typer.Typer()


@app.command(
    epilog=example("fmscale dataset repair runs/store/docs --dry-run", "fmscale dataset repair runs/store/docs")
)
def repair(
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be masked.")] = False,
    json: JsonOption = False,
) -> None:
    """Mask documents that a dataset holds twice, or in both splits, as datasets of earlier versions of fmscale can.

    Reads the whole dataset, and appends one entry to its log. New runs do not see the masked documents; a run that has
    begun keeps its view. Of copies in both splits the held-out ones stay; of a document that was ingested twice the
    later one stays.
    """
    from fmscale.data.ingest.repair import find_doubles, mask_doubles, read_stock
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    opened = open_dataset(open_store(url, read_only=dry_run), name)
    size = sum(total.documents for commit in opened.commits() for total in commit.totals.values())
    with progress("reading", size, json=json, unit="documents") as bar:
        stock = read_stock(opened, contents=True, advance=bar.advance)
    doubles = find_doubles(stock)
    counts = {name: len(getattr(doubles, name)) for name in ("straddling", "repeated", "again")}
    masks = {} if dry_run else mask_doubles(opened, stock, doubles)
    record({"dataset": opened.name, "documents": len(stock.split), **counts, "masks": masks, "dry_run": dry_run}, json)
