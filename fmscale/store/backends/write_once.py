"""Creation of objects that another writer may have stored already: their names follow from their content."""

from fmscale.errors import ObjectNotFound, StoreUnavailable
from fmscale.store.backends.protocol import Backend


def created(backend: Backend, key: str, data: bytes) -> bool:
    """Create `key`. True if this call created it, provided that no other writer stores this `data`: after a lost
    answer the object's content decides.

    Raises StoreUnavailable if the object cannot be read back either, and the store's other errors.
    """
    try:
        return backend.put_if_absent(key, data)
    except StoreUnavailable as unknown:
        try:
            return backend.get(key) == data
        except (ObjectNotFound, StoreUnavailable):
            raise unknown from None


def store_once(backend: Backend, key: str, data: bytes) -> bool:
    """Make sure that `key` exists. True if it holds `data`, from any writer. Raises the errors of `created`."""
    return created(backend, key, data) or backend.get(key) == data
