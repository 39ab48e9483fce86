"""`fmscale ingest`: a folder of text becomes a dataset with one command."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import find_dataset
from fmscale.cli.dataset_derive import SpecOption, derive_column, read_spec
from fmscale.cli.output import JsonOption, example, human_bytes, print_json, progress, record, say
from fmscale.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fmscale.data.ingest import IngestResult

app = typer.Typer()


@app.command(
    epilog=example(
        "fmscale ingest docs/ --store runs/store --dataset docs --tokenizer bpe:8192",
        "fmscale ingest 'raw/*.jsonl.zst' --field content --store s3://bucket/store --dataset web",
        "fmscale ingest photos/ 'shards/*.tar' --as records --store runs/store --dataset photos",
        "fmscale ingest chats/ --as records --spec '{kind: text, tokenizer: bytes}' --dataset runs/store/chats",
        "fmscale ingest chats.jsonl --as chat --store runs/store --dataset chats",
        "mpirun -n 8 fmscale ingest /data/code --store /shared/store --dataset code",
    )
)
def ingest(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, quoted globs, URLs of these.")],
    store: Annotated[str | None, typer.Option(help="Where datasets live: a path, s3://, gs://, az://.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the dataset, made if it is not there; STORE/DATASET without --store.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            help="text (documents of tokens); records (all columns of tables, JSON, tars, media); messages: chat, "
            "completion, preference, ranking, prompts.",
        ),
    ] = "text",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bpe:N (trained on the corpus), bytes, or the path of a tokenizer.json. "
            "Default: the dataset's own, bpe:8192 for a new one."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="auto (by extension, or first bytes), text, jsonl, json (array), parquet, arrow; records: tar, media."
        ),
    ] = "auto",
    field: Annotated[
        str | None, typer.Option(help="Path of the text in a record, such as a.b.text. Default: text.")
    ] = None,
    heldout: Annotated[
        float | None,
        typer.Option(help="Share of the documents that go to the split heldout. Default: the dataset's own, or 0."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that write. Default: one a core.")] = None,
    max_document: Annotated[
        int, typer.Option(help="Bytes of the largest document or record; longer ones are skipped and counted.")
    ] = 64 << 20,
    strict: Annotated[
        bool, typer.Option("--strict", help="Damaged input is an error instead of skipped and counted.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take changed files anew, and mask their earlier documents.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which files would be added, passed over or refused, and why.")
    ] = False,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="A BOS token before each document. Default: no.")
    ] = None,
    eos: Annotated[
        bool | None, typer.Option("--eos/--no-eos", help="An EOS token after each document. Default: yes.")
    ] = None,
    spec: SpecOption = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Local folder for unfinished segments. Default: the system's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Turn files into a dataset. A job that was killed goes on when it is run again.

    With --spec the sizes of records are derived behind the commit, as `fmscale dataset derive` does.
    """
    from fmscale.data.ingest import ingest as run
    from fmscale.data.ingest.additions import CHANGED
    from fmscale.data.ingest.plan import HELDOUT
    from fmscale.errors import RankError
    from fmscale.runtime.world import read_world

    url, name = find_dataset(None, store, dataset)
    leads = read_world().rank == 0
    if spec is not None and kind != "records":
        raise ConfigError("a spec makes samples of records", found=f"--as {kind}", remedy="Add --as records.")
    made = read_spec(url, spec) if spec is not None and leads and not dry_run else None
    try:
        with progress("ingest", json=json or not leads, unit="bytes") as bar:
            result = run(
                paths,
                store=url,
                dataset=name,
                kind=kind,
                tokenizer=tokenizer,
                format=format,
                field=field,
                heldout=heldout,
                workers=workers,
                strict=strict,
                replace=replace,
                dry_run=dry_run,
                bos=bos,
                eos=eos,
                scratch=scratch,
                max_document=max_document,
                progress=bar.update,
            )
    except RankError as error:
        if leads:
            raise
        # Rank 0 shows the error, and the rank on which it happened.
        raise typer.Exit(2) from error
    if leads:
        if heldout and result.commit == 0 and HELDOUT not in result.splits:
            say(
                f"warning: none of {result.documents:,} {_noun(result)} was held out by --heldout {heldout:g}: their "
                "content decides. Ingest more of them, or give a larger share and another --dataset.",
                err=True,
            )
        if not json:
            _show(result, dry_run)
        sizes = [derive_column(url, name, split, made, workers, json) for split in result.splits] if made else []
        if json:
            speed = {"tokens_per_second" if kind == "text" else "records_per_second": round(result.speed)}
            derived = {"sizes": sizes} if made else {}
            print_json({**asdict(result), "kind": result.kind, **speed, **derived})
        changed = result.files.get(CHANGED)
        if changed and not dry_run:
            raise DataError(
                f"{changed['count']:,} known files were left out, because their content has changed",
                found=_names(changed),
                remedy="--replace takes the new content and masks the documents of the old.",
            )


def _noun(result: "IngestResult") -> str:
    return "records" if result.kind == "records" else "documents"


def _names(files: dict[str, Any]) -> str:
    return ", ".join(files["first"]) + (", …" if files["count"] > len(files["first"]) else "")


def _show(result: "IngestResult", dry_run: bool) -> None:
    noun, text = _noun(result), result.kind == "text"
    speed, unit = round(result.speed), "tokens" if text else noun
    if not result.new and not dry_run:
        say(f"{result.dataset} has these inputs already (commit {result.commit}); nothing was done.")
    read = f"{human_bytes(result.raw_bytes)} " + ("to read" if dry_run else "read")
    done: dict[str, Any] = {
        "commit": result.commit,
        noun: result.documents,
        **({"tokens": result.tokens} if text else {}),
    }
    values: dict[str, Any] = {
        "dataset": result.dataset,
        **({} if dry_run else done),
        "bytes": read + f", {human_bytes(result.text_bytes)} of text" * (text and not dry_run),
        **{
            f"split {name}": f"{counts['documents']:,} {noun}" + f", {counts['tokens']:,} tokens" * text
            for name, counts in result.splits.items()
        },
        **({"tokenizer": result.tokenizer} if text else {}),
    }
    if result.new:
        values[f"{unit}/s"] = speed
        values["work units"] = f"{result.units}" + (f", {result.resumed} done before" if result.resumed else "")
    for what, reasons in (("files", result.files), ("guessed", result.guessed), ("skipped", result.skipped)):
        for reason, files in reasons.items():
            values[f"{what}, {reason}"] = f"{files['count']:,}: {_names(files)}"
    record(values, json=False)
