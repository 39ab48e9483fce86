"""Tokenizers on a store: each is stored whole under its digest, never as a name only."""

from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.by_digest import load_by_digest, store_by_digest

FORM = "tokenizers/{}.json"


def tokenizer_key(digest: str) -> str:
    """Key of the tokenizer with this digest; all datasets of a store share it, and it is never deleted."""
    return FORM.format(digest)


def store_tokenizer(backend: Backend, data: bytes) -> str:
    """Store a tokenizer's JSON, if the store lacks it; returns its digest."""
    return store_by_digest(backend, FORM, data)


def load_tokenizer(backend: Backend, digest: str) -> bytes:
    """A tokenizer's JSON, verified. Raises ObjectNotFound, CorruptData."""
    remedy = "Store it first (store_tokenizer), or restore the object from a copy."
    return load_by_digest(backend, FORM, digest, name="The tokenizer", remedy=remedy)
