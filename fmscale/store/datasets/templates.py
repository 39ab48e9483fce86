"""Chat templates on a store: each is stored whole under its digest, with the special tokens that it may name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fmscale.errors import CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.by_digest import load_by_digest, store_by_digest
from fmscale.store.digest import canonical_json, metadata_digest


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The text of a Jinja template, and the values of `bos_token`, `eos_token` and the like in it."""

    text: str
    """The template as the model's authors published it."""
    special_tokens: Mapping[str, str]
    """Special tokens by their name in the template."""

    @property
    def data(self) -> bytes:
        """The stored form, of which the digest is made."""
        return canonical_json({"text": self.text, "special_tokens": dict(self.special_tokens)})

    @property
    def digest(self) -> str:
        """Digest by which commits, checkpoints and exports name the template."""
        return metadata_digest(self.data)


FORM = "templates/{}.json"


def store_template(backend: Backend, template: ChatTemplate) -> str:
    """Store a template, if the store lacks it; returns its digest."""
    return store_by_digest(backend, FORM, template.data)


def load_template(backend: Backend, digest: str) -> ChatTemplate:
    """A template, verified. Raises ObjectNotFound, CorruptData."""
    remedy = "Restore the object from a copy, or import the model again."
    data = load_by_digest(backend, FORM, digest, name="The chat template", remedy=remedy)
    try:
        values = json.loads(data)
        return ChatTemplate(text=str(values["text"]), special_tokens=dict(values["special_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(
            "A chat template on the store is none",
            found=f"{FORM.format(digest)}: {error!r}",
            remedy="Import the model again.",
        ) from error
