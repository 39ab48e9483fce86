"""`fmscale evaluate`: a run's model on held-out documents, in bits per byte, beside other compressors."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import find_dataset
from fmscale.cli.evaluate_tasks import evaluate_tasks
from fmscale.cli.model import Device, Precision, Threads, open_model
from fmscale.cli.output import JsonOption, example, print_json, progress, record, table
from fmscale.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fmscale.infer import Document

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale evaluate runs/store#run",
        "fmscale evaluate runs/store#run@1000 --file README.md --per-document --json",
        "fmscale evaluate runs/store#run runs/store#tuned --task arithmetic --program oranges_steps",
    )
)
def evaluate(
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE#RUN[@STEP]...", help="Runs, each at a step or its newest checkpoint; several with --task."
        ),
    ],
    task: Annotated[
        list[str] | None, typer.Option(help="A task in YAML, or a shipped task, instead of documents. Repeatable.")
    ] = None,
    program: Annotated[
        list[str] | None, typer.Option(help="A prompt program that asks a task's questions. Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first documents of a task.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask a task by the run's chat template.")] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Most documents of a task in one forward.")] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Execute what the model writes in code tasks, without network.")
    ] = False,
    to: Annotated[Path | None, typer.Option(help="JSON Lines file for each document's result in tasks.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset of the store, or STORE/DATASET; the run's first by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "heldout",
    documents: Annotated[int | None, typer.Option(help="At most so many documents, the first ones stored.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text files instead of a dataset. Repeatable.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens read at once; as in training by default.")] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Tokens that windows of a longer document share; half by default.")
    ] = None,
    others: Annotated[
        bool, typer.Option("--others/--no-others", help="Also gzip -9 and xz -9 of the same documents.")
    ] = True,
    per_document: Annotated[bool, typer.Option("--per-document", help="Also each document.")] = False,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a run's model: bits per byte, loss and perplexity of held-out documents.

    All bits over all bytes, document by document. Every token counts once, also the end of a document; its first
    token costs log2 of the vocabulary where the data has no BOS token. Other compressors get each document alone.

    With --task: multiple choice, generated answers, perplexity or code, for several runs and prompt programs side by
    side, with Wilson's intervals.
    """
    if task:
        evaluate_tasks(
            addresses, task, program or [], limit=limit, chat=chat, run_code=run_code, batch=batch, to=to,
            device=device, precision=precision, threads=threads, json=json,
        )  # fmt: skip
        return
    if len(addresses) > 1 or program or to:
        raise ConfigError(
            "Several runs, --program and --to belong to tasks",
            found=addresses,
            remedy="Give --task, or evaluate the runs one by one.",
        )
    from fmscale.infer import evaluate as score
    from fmscale.infer.compressors import COMPRESSORS
    from fmscale.infer.heldout import files, stored_documents
    from fmscale.store.open import open_store

    trained = open_model(addresses[0], device, precision)
    backend, chosen = trained.backend, dataset or trained.dataset
    if not chosen and not file:
        remedy = "Name some: --dataset NAME of its store, STORE/DATASET, or --file PATH."
        raise DataError("An imported model has no documents of its own", found=addresses[0], remedy=remedy)
    if "/" in chosen:
        url, chosen = find_dataset(chosen, None, None)
        backend = open_store(url, read_only=True)
    if file:
        corpus = files(file, trained.tokenizer, bos=trained.bos, eos=trained.eos)
    else:
        corpus = stored_documents(
            backend, chosen, split, trained.tokenizer, bos=trained.bos, eos=trained.eos, limit=documents
        )
    longest = min(trained.sequence_length, trained.model.config.max_seq_len)
    compressors = COMPRESSORS if others else {}
    compressed: list[dict[str, int]] = []

    def watch(documents: "Iterable[Document]") -> "Iterator[Document]":
        for document in documents:
            compressed.append({name: compress(document.text) for name, compress in compressors.items()})
            yield document

    with progress("evaluate", json=json, unit="bytes") as bar:
        result = score(
            trained.model,
            watch(corpus),
            window=longest if window is None else window,
            overlap=overlap,
            threads=threads,
            progress=bar.advance,
        )
    total = result.total
    if not total.tokens:
        raise DataError(
            "There is nothing to evaluate",
            found=f"{len(result.documents)} documents without a token",
            remedy="`fmscale ingest --heldout 0.01` keeps documents back.",
        )
    summary: dict[str, Any] = {
        "run": trained.run,
        "step": trained.step,
        "documents": len(result.documents),
        "bytes": total.bytes,
        "tokens": total.tokens,
        "bits_per_byte": total.bits_per_byte,
        **_rates({name: sum(sizes[name] for sizes in compressed) for name in compressors}, total.bytes),
        "loss": total.loss,
        "perplexity": total.perplexity,
        "window": result.window,
        "overlap": result.overlap,
    }
    rows = [
        {
            "document": document.name,
            "bytes": document.bytes,
            "tokens": document.tokens,
            "bits_per_byte": document.bits_per_byte if document.bytes else None,
            **_rates(sizes, document.bytes),
        }
        for document, sizes in zip(result.documents, compressed, strict=True)
    ]
    if json:
        print_json({**summary, **({"per_document": rows} if per_document else {})})
        return
    record(summary, json)
    if per_document:
        table(rows, json, title="\ndocuments")


def _rates(sizes: dict[str, int], size: int) -> dict[str, float | None]:
    """Bits per byte of documents of `size` bytes, by compressor."""
    return {f"{name}_bits_per_byte": 8 * bytes_ / size if size else None for name, bytes_ in sizes.items()}
