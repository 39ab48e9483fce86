"""Chat templates on a store: each is stored whole under its digest, with the special tokens that it may name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fmscale.errors import CorruptData, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.seal import verified


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


def template_key(digest: str) -> str:
    """Key of the template with this digest; all runs and datasets of a store share it, and it is never deleted."""
    return f"templates/{digest}.json"


def store_template(backend: Backend, template: ChatTemplate) -> str:
    """Store a template, if the store lacks it; returns its digest."""
    store_once(backend, template_key(template.digest), template.data)
    return template.digest


def load_template(backend: Backend, digest: str) -> ChatTemplate:
    """A template, verified. Raises ObjectNotFound, CorruptData."""
    key = template_key(digest)
    try:
        values = json.loads(verified(backend.get(key), digest, key))
        return ChatTemplate(text=str(values["text"]), special_tokens=dict(values["special_tokens"]))
    except ObjectNotFound as error:
        raise ObjectNotFound(
            "The chat template is not on the store",
            found=key,
            remedy="Restore the object from a copy, or import the model again.",
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(
            "A chat template on the store is none", found=f"{key}: {error!r}", remedy="Import the model again."
        ) from error
