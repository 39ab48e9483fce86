"""`fmscale dataset`: lists, shows and checks the datasets of a store."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli import (
    dataset_audit,
    dataset_decontaminate,
    dataset_derive,
    dataset_mask,
    dataset_render,
    dataset_repair,
)
from fmscale.cli.address import DatasetArgument, DatasetOption, StoreArgument, StoreOption, find_dataset, find_store
from fmscale.cli.output import JsonOption, example, human_bytes, print_json, progress, record, say, table
from fmscale.errors import ConfigError, FmscaleError

if TYPE_CHECKING:
    from fmscale.store.backends.protocol import Backend
    from fmscale.store.datasets.commit import Commit
    from fmscale.store.datasets.dataset import Dataset

CommitOption = Annotated[int | None, typer.Option("--commit", help="Number of one commit; all by default.")]


app = typer.Typer(
    name="dataset",
    no_args_is_help=True,
    help="Look at datasets and check them.",
    epilog=example("fmscale dataset list runs/store"),
)
app.add_typer(dataset_audit.app)
app.add_typer(dataset_mask.app)
app.add_typer(dataset_decontaminate.app)
app.add_typer(dataset_derive.app)
app.add_typer(dataset_render.app)
app.add_typer(dataset_repair.app)


@app.command("list", epilog=example("fmscale dataset list runs/store"))
def list_(address: StoreArgument = None, store: StoreOption = None, json: JsonOption = False) -> None:
    """List a store's datasets with their sizes."""
    backend, datasets = _open_all(find_store(address, store))
    rows = [_summary(dataset, json) for dataset in datasets]
    if not rows and not json:
        say(f"{backend.url} has no datasets.")
        return
    table(rows, json)


@app.command(epilog=example("fmscale dataset show runs/store/docs"))
def show(
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    commit: CommitOption = None,
    json: JsonOption = False,
) -> None:
    """Show a dataset's commits and their splits."""
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    opened = open_dataset(open_store(url, read_only=True), name)
    commits = opened.commits() if commit is None else [opened.commit(commit)]
    if json:
        described = [
            {
                "number": c.number,
                "time": c.time,
                "digest": c.digest,
                "columns": {split: _columns(opened, c, split) for split in sorted(c.totals)},
                **c.body,
            }
            for c in commits
        ]
        print_json({"dataset": name, "store": opened.backend.url, "commits": described})
        return
    record(_summary(opened, json), json)
    table([row for c in commits for row in _split_rows(opened, c)], json, title="\ncommits")


@app.command(epilog=example("fmscale dataset verify runs/store/docs", "fmscale dataset verify runs/store"))
def verify(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE[/DATASET]", help="A store or a dataset of it; or give --store, and --dataset for one."
        ),
    ] = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    commit: CommitOption = None,
    json: JsonOption = False,
) -> None:
    """Read every byte of datasets, check it, and name what is damaged, truncated or missing.

    The exit status is 0 if all is well and 1 if there are problems.
    """
    from fmscale.store.datasets.verify import size_of, verify_dataset

    backend, opened = _open(address, store, dataset)
    if commit is not None and len(opened) != 1:
        raise ConfigError(
            "--commit is a commit of one dataset", found=commit, remedy="Give STORE/DATASET, or --dataset too."
        )
    commits = {one.name: one.commits() if commit is None else [one.commit(commit)] for one in opened}
    size = sum(size_of(one, commits[one.name]) for one in opened)
    rows: list[dict[str, Any]] = []
    with progress("verify", size, json=json, unit="bytes") as bar:
        for one in opened:
            problems = verify_dataset(backend, one, [c.number for c in commits[one.name]], bar.advance)
            rows += [
                {"dataset": one.name, "commit": p.commit, "object": p.key, "chunk": p.chunk, "problem": p.what}
                for p in problems
            ]
            rows += [] if problems or commit is not None else _repeated(one)
    checked = {name: [c.number for c in live] for name, live in commits.items()}
    if json:
        print_json({"commits": checked, "bytes": size, "ok": not rows, "problems": rows})
    elif rows:
        table(rows, json)
        say(
            f"{len(rows)} problems in {human_bytes(size)}. Restore the objects from a copy, or retire the "
            "commit and ingest its data again.",
            err=True,
        )
    else:
        count = sum(len(numbers) for numbers in checked.values())
        say(f"{len(opened)} datasets, {count} commits, {human_bytes(size)}: every chunk is right.")
    if rows:
        raise typer.Exit(1)


def _repeated(dataset: "Dataset") -> list[dict[str, Any]]:
    """Documents whose id the dataset has again: a row a commit."""
    import numpy as np

    from fmscale.data.ingest.repair import read_stock, repeated_ids

    found = repeated_ids(read_stock(dataset, contents=False))
    rows = []
    for number in np.unique(found.commit).tolist():
        ids = found.id[found.commit == number]
        what = f"{len(ids)} documents are there again: {ids[0].tobytes().hex()} …; `fmscale dataset repair` masks them"
        rows.append({"dataset": dataset.name, "commit": number, "object": "", "chunk": None, "problem": what})
    return rows


def _open(address: str | None, store: str | None, dataset: str | None) -> "tuple[Backend, list[Dataset]]":
    """The store and its datasets to verify. An `address` that is not a store with datasets is read as STORE/DATASET."""
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    if address is None and dataset is None:
        return _open_all(find_store(None, store))
    if store is None and dataset is None:
        # Errors are dropped here, such as no store at STORE/DATASET: the lines below raise them, with similar names.
        with suppress(FmscaleError):
            backend, opened = _open_all(str(address))
            if opened:
                return backend, opened
    url, name = find_dataset(address, store, dataset)
    backend = open_store(url, read_only=True)
    return backend, [open_dataset(backend, name)]


def _open_all(url: str) -> "tuple[Backend, list[Dataset]]":
    from fmscale.store.datasets.dataset import list_datasets, open_dataset
    from fmscale.store.open import open_store

    backend = open_store(url, read_only=True)
    return backend, [open_dataset(backend, name) for name in list_datasets(backend)]


def _summary(dataset: "Dataset", json: bool) -> dict[str, Any]:
    from fmscale.data.views.mask import own_masked

    commits = dataset.commits()
    totals = [total for commit in commits for total in commit.totals.values()]
    splits = sorted({split for commit in commits for split in commit.totals})
    size = sum(total.bytes for total in totals)
    text = not commits or commits[-1].kind == "tokens"
    return {
        "dataset": dataset.name,
        "commits": len(commits),
        "splits": splits,
        "segments": sum(total.segments for total in totals),
        "kind": commits[-1].kind if commits else None,
        "documents" if text else "records": sum(total.documents for total in totals),
        "masked": sum(len(places) for split in splits for places in own_masked(dataset, split).values()),
        **({"tokens": sum(total.tokens for total in totals)} if text else {}),
        "bytes": size if json else human_bytes(size),
        **({name: getattr(commits[-1], name) if commits else None for name in ("dtype", "tokenizer")} if text else {}),
    }


def _split_rows(dataset: "Dataset", commit: "Commit") -> list[dict[str, Any]]:
    """A row per split of a commit, with the names of its derived columns."""
    return [
        {
            "commit": commit.number,
            "time": datetime.fromtimestamp(commit.time, UTC).isoformat(timespec="seconds"),
            "split": split,
            "segments": total.segments,
            **(
                {"records": total.documents}
                if commit.kind == "records"
                else {"documents": total.documents, "tokens": total.tokens, "bos": commit.bos, "eos": commit.eos}
            ),
            "bytes": human_bytes(total.bytes),
            "job": commit.job[:16],
            "columns": _columns(dataset, commit, split),
        }
        for split, total in sorted(commit.totals.items())
    ]


def _columns(dataset: "Dataset", commit: "Commit", split: str) -> list[str]:
    from fmscale.store.datasets.columns import column_names

    return column_names(dataset.backend, dataset.name, commit.body["manifests"][split]["digest"])
