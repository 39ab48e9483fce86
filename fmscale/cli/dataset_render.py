"""`fmscale dataset render`: messages become tokens under a chat template, and show what a model reads and learns."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fmscale.cli.address import DatasetArgument, DatasetOption, StoreOption, find_dataset
from fmscale.cli.output import JsonOption, example, print_json, progress, record, say, say_lines, styled_lines
from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from fmscale.store.backends.protocol import Backend

app = typer.Typer()

SHOWN = 2
"""Records that are shown by default."""


@app.command(
    epilog=example(
        "fmscale dataset render runs/store/chats --with base",
        "fmscale dataset render runs/store/chats --with base --template chat.jinja --to chats.new --trained last",
        "fmscale dataset render runs/store/chats.base --show 5",
    )
)
def render(
    address: DatasetArgument = None,
    store: StoreOption = None,
    dataset: DatasetOption = None,
    base: Annotated[
        str | None,
        typer.Option("--with", metavar="[STORE#]RUN[@STEP]", help="Run whose tokenizer and template are taken."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="File with a Jinja chat template, instead of the run's.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Name of the rendered dataset. Default: DATASET.RUN.")] = None,
    trained: Annotated[Literal["all", "last"], typer.Option(help="Turns of the assistant that are trained.")] = "all",
    specials: Annotated[
        Literal["text", "refuse"], typer.Option(help="Special tokens that users typed: text, or leave the record out.")
    ] = "text",
    too_long: Annotated[Literal["refuse", "drop", "cut"], typer.Option(help="Texts above --max-tokens.")] = "refuse",
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Most tokens of a text. Default: no limit.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Records that are shown.")] = SHOWN,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
    json: JsonOption = False,
) -> None:
    """Render messages into a dataset of tokens, and show what the model reads and what is trained.

    A job that was killed goes on when it is run again; a later call adds what the dataset got since. A rendered dataset
    is only shown. Trained text is green, and stands in [[ ]] where there is no colour.
    """
    from fmscale.data.chat.render import Policy
    from fmscale.data.rendering.job import render_dataset, render_notes
    from fmscale.data.rendering.show import shown
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store

    url, name = find_dataset(address, store, dataset)
    commits = open_dataset(open_store(url, read_only=True), name).commits()
    if rendered := bool(commits and render_notes(commits[-1])):
        if base or template or to:
            raise ConfigError(
                "this dataset is rendered already",
                found=name,
                remedy=f"Name the dataset of messages, or leave --with, --template and --to out to look at {name}.",
            )
        made, to = commits[-1:], name
    elif base is None:
        raise ConfigError(
            "a rendering needs a tokenizer and a chat template",
            found="--with is not given",
            remedy="Give --with RUN: a run of the store, such as `fmscale import` makes.",
        )
    else:
        taken, to = _taken(url, base, template), to or f"{name}.{base.rpartition('#')[2].partition('@')[0]}"
        policy = Policy(trained=trained, specials=specials, too_long=too_long, max_tokens=max_tokens)
        with progress("render", json=json) as bar:
            made = render_dataset(
                url,
                name,
                to,
                **taken,
                policy=policy,
                workers=workers,
                progress=lambda done, total: bar.update("render", done, total),
            )
    backend = open_store(url, read_only=True)
    last = open_dataset(backend, to).commits()[-1]
    records = shown(backend, last, show)
    told = [{"dataset": to, "number": one.number, **(render_notes(one) or {})} for one in made or [last]]
    if json:
        print_json({"new": bool(made) and not rendered, "commits": told, "shown": records})
        return
    if not made:
        say(f"{to} has all of {name} already; nothing was done.")
    for notes in told:
        _tell(notes)
    for one in records:
        _show(one)


def _taken(store: str, base: str, template: Path | None) -> dict[str, Any]:
    """Digests of tokenizer and template, which the store then has, and ids of BOS and EOS."""
    from fmscale.checkpoint.checkpoint import open_in
    from fmscale.data.tokenizers.tokenizer import from_json
    from fmscale.infer.load import framing
    from fmscale.store.datasets.templates import ChatTemplate, load_template, store_template
    from fmscale.store.datasets.tokenizers import load_tokenizer, store_tokenizer
    from fmscale.store.doctor.probe import require_writable
    from fmscale.store.open import open_store

    place, mark, run = base.rpartition("#")
    run, _, step = run.partition("@")
    theirs = open_store(place if mark else store, read_only=True)
    meta = open_in(theirs, run, step or "auto").meta
    if meta.get("tokenizer") is None:
        raise ConfigError(f"run {run} has no tokenizer", found=base, remedy="Name a run that reads text.")
    content = load_tokenizer(theirs, meta["tokenizer"])
    tokenizer = from_json(content, f"the tokenizer of {run}")
    bos, eos = meta.get("bos"), meta.get("eos")
    sources = meta.get("config", {}).get("data", {}).get("sources", ())
    if "eos" not in meta:
        bos, eos = framing(theirs, sources[0]["dataset"], tokenizer) if sources else (None, tokenizer.eos_id)
    chosen = load_template(theirs, meta["template"]) if meta.get("template") else None
    if template is not None:
        try:
            text = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "the template cannot be read", found=f"{template}: {error}", remedy="Name a file."
            ) from error
        known = {"bos_token": bos, "eos_token": eos}
        names = {key: tokenizer.decode([number]) for key, number in known.items() if number is not None}
        chosen = ChatTemplate(text=text, special_tokens=chosen.special_tokens if chosen else names)
    backend: Backend = open_store(store)
    require_writable(backend)
    return {
        "tokenizer": store_tokenizer(backend, content),
        "template": None if chosen is None else store_template(backend, chosen),
        "bos": bos,
        "eos": eos,
    }


def _tell(notes: dict[str, Any]) -> None:
    """A commit: its counts, and what was left out."""
    names = {"typed": "records with special tokens as text", "cut": "records with texts cut"}
    counts = {names.get(key, key): value for key, value in notes["counts"].items()}
    out = {f"left out, {why}": f"{n['count']:,}: {'; '.join(n['first'])}" for why, n in notes["left_out"].items()}
    record(
        {"dataset": notes["dataset"], "commit": notes["number"], "shape": notes["shape"], **counts, **out}, json=False
    )


def _show(one: dict[str, Any]) -> None:
    """A record, text by text."""
    for number, runs in enumerate(one["texts"], 1):
        of = f", text {number} of {len(one['texts'])}" if len(one["texts"]) > 1 else ""
        say()
        say(f"--- record {one['source']}{of}: {sum(run['tokens'] for run in runs):,} tokens")
        styled_lines([(run["text"], run["trained"]) for run in runs])
    if one["answer"] is not None:
        say_lines(f"--- expected answer: {one['answer']}")
