"""`fmscale dataset mask`: take documents or records out of a dataset without rewriting it."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.address import DatasetArgument, DatasetOption, StoreOption, find_dataset
from fmscale.cli.output import JsonOption, example, progress, record
from fmscale.errors import ConfigError, DataError

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale dataset mask runs/store/docs --id 0f3c5a7e9b1d2f4c6e8a0b2d4f6e8c0a",
        "fmscale dataset mask runs/store/docs --source 'drafts/*.md'",
    )
)
def mask(
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="Id of a document or record; may be repeated.")] = None,
    ids: Annotated[Path | None, typer.Option("--ids", help="File with one id a line.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Pattern of source paths, as in a shell; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of the dataset.")] = "train",
    json: JsonOption = False,
) -> None:
    """Store a mask of documents or records, chosen by id or by source path, and print its digest.

    A run whose config names the digest in data.sources[].masks does not see them. A run that has begun keeps the
    masks that it began with. The same documents or records give the same digest; several masks may be named together.
    """
    from fmscale.data.views.mask import document_id, find_documents, make_mask, of_sources
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    doc_ids = [document_id(text) for text in [*(id or []), *_lines(ids)]]
    if bool(doc_ids) == bool(source):
        found, remedy = f"{len(doc_ids)} ids, {len(source or [])} patterns", "Give --id or --ids, or --source."
        raise ConfigError("documents are chosen either by id or by source", found=found, remedy=remedy)
    opened = open_dataset(open_store(url), name)
    segments = sum(c.manifests[split].segments for c in opened.commits() if split in c.manifests)

    def chosen(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in source or [])

    with progress("searching", segments, json=json) as bar:
        documents = find_documents(
            opened, split=split, ids=doc_ids or None, where=of_sources(chosen) if source else None, advance=bar.advance
        )
    digest = make_mask(opened, documents, split=split)
    if opened.commits()[0].kind == "records":
        counts = {"records": len(documents.commit)}
    else:
        counts = {"documents": len(documents.commit), "tokens": int((documents.stop - documents.start).sum())}
    record({"mask": digest, "split": split, **counts}, json)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Give a text file with one document id a line."
        raise DataError("the file of ids cannot be read", found=f"{path}: {error}", remedy=remedy) from error
