"""Tokenizers on a store: each is stored whole under its digest, never as a name only."""

from fmscale.errors import ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.seal import verified


def tokenizer_key(digest: str) -> str:
    """Key of the tokenizer with this digest; all datasets of a store share it, and it is never deleted."""
    return f"tokenizers/{digest}.json"


def store_tokenizer(backend: Backend, data: bytes) -> str:
    """Store a tokenizer's JSON, if the store lacks it; returns its digest."""
    digest = metadata_digest(data)
    store_once(backend, tokenizer_key(digest), data)
    return digest


def load_tokenizer(backend: Backend, digest: str) -> bytes:
    """A tokenizer's JSON, verified. Raises ObjectNotFound, CorruptData."""
    key = tokenizer_key(digest)
    try:
        return verified(backend.get(key), digest, key)
    except ObjectNotFound as error:
        raise ObjectNotFound(
            "The tokenizer is not on the store",
            found=key,
            remedy="Store it first (store_tokenizer), or restore the object from a copy.",
        ) from error
