"""Small files of an imported model on a store, verbatim under their digests: an export writes them again."""

from fmscale.errors import ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.digest import metadata_digest
from fmscale.store.segments.seal import verified


def file_key(digest: str) -> str:
    """Key of the file with this digest; all runs of a store share it, and it is never deleted."""
    return f"files/{digest}"


def store_file(backend: Backend, data: bytes) -> str:
    """Store a file, if the store lacks it; returns its digest."""
    digest = metadata_digest(data)
    store_once(backend, file_key(digest), data)
    return digest


def load_file(backend: Backend, digest: str) -> bytes:
    """A file, verified. Raises ObjectNotFound, CorruptData."""
    key = file_key(digest)
    try:
        return verified(backend.get(key), digest, key)
    except ObjectNotFound as error:
        remedy = "Restore the object from a copy, or import the model again into another run."
        raise ObjectNotFound("A file of an imported model is not on the store", found=key, remedy=remedy) from error
