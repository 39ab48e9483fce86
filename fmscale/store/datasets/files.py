"""Small files of an imported model on a store, verbatim under their digests: an export writes them again."""

from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.by_digest import load_by_digest, store_by_digest

FORM = "files/{}"


def store_file(backend: Backend, data: bytes) -> str:
    """Store a file, if the store lacks it; returns its digest."""
    return store_by_digest(backend, FORM, data)


def load_file(backend: Backend, digest: str) -> bytes:
    """A file, verified. Raises ObjectNotFound, CorruptData."""
    remedy = "Restore the object from a copy, or import the model again into another run."
    return load_by_digest(backend, FORM, digest, name="A file of an imported model", remedy=remedy)
