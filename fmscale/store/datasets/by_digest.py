"""Small objects under the digests of their bytes: all datasets and runs of a store share them; none is ever deleted."""

from fmscale.errors import ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.seal import verified


def store_by_digest(backend: Backend, form: str, data: bytes) -> str:
    """Store an object, if the store lacks it; returns its digest. `form` is its key with {} for the digest."""
    digest = metadata_digest(data)
    store_once(backend, form.format(digest), data)
    return digest


def load_by_digest(backend: Backend, form: str, digest: str, *, name: str, remedy: str) -> bytes:
    """An object, verified. Raises ObjectNotFound with its `name` and the remedy, CorruptData."""
    key = form.format(digest)
    try:
        return verified(backend.get(key), digest, key)
    except ObjectNotFound as error:
        raise ObjectNotFound(f"{name} is not on the store", found=key, remedy=remedy) from error
