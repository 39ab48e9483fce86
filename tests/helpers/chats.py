"""Tokenizers and templates of families of chat models, with what TRL and transformers made of them; and stores."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from fmscale.data.chat.formats import normal_form
from fmscale.data.chat.render import Policy
from fmscale.data.ingest import ingest
from fmscale.data.rendering.job import render_dataset, render_notes
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.store.datasets.templates import ChatTemplate, store_template
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.open import open_store

FIXTURE = Path(__file__).parents[1] / "fixtures" / "chats.json"


@cache
def golden() -> dict[str, Any]:
    """The fixture: `tokenizers`, `messages`, `families`."""
    made: dict[str, Any] = json.loads(FIXTURE.read_text())
    return made


@cache
def tokenizer_json(family: str) -> bytes:
    """tokenizer.json of a family: a small tokenizer with the family's special tokens."""
    values = golden()["families"][family]
    library: Any = Library.from_str(golden()["tokenizers"][values["tokenizer"]])
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in values["specials"]])
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in values["others"]])
    return str(library.to_str()).encode()


def tokenizer_of(family: str) -> Any:
    """The family's tokenizer."""
    return from_json(tokenizer_json(family))


def template_of(family: str, which: str = "template") -> ChatTemplate:
    """The family's own template, or TRL's for `training`."""
    values = golden()["families"][family]
    return ChatTemplate(text=values[which], special_tokens=values["special_tokens"])


def chat(*contents: str, **extra: Any) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn; `extra` are keys of the last."""
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    messages[-1] |= extra
    return messages


def record(shape: str = "chat", **values: Any) -> dict[str, Any]:
    """A record of messages in its one form."""
    return normal_form(values, shape)


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def ingest_messages(store: str, dataset: str, path: Path, shape: str = "chat", **options: Any) -> Any:
    """Ingest a file of messages."""
    return ingest([str(path)], store=store, dataset=dataset, kind=shape, workers=1, **options)


def store_family(store: str, family: str, which: str = "template") -> dict[str, Any]:
    """Put a family's tokenizer and template on a store; returns what a rendering takes of a run."""
    backend, eos = open_store(store), tokenizer_of(family).specials[template_of(family).special_tokens["eos_token"]]
    return {
        "tokenizer": store_tokenizer(backend, tokenizer_json(family)),
        "template": store_template(backend, template_of(family, which)),
        "bos": None,
        "eos": eos,
    }


def rendered(store: str, source: str, target: str, family: str = "llama3", **policy: Any) -> list[dict[str, Any]]:
    """Render a dataset of messages by a family's template, with this process alone; the notes of the new commits."""
    taken = store_family(store, family)
    made = render_dataset(store, source, target, **taken, policy=Policy(**policy), workers=1)
    return [dict(render_notes(commit) or {}) for commit in made]
