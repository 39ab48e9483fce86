"""Creation of objects that anybody may have stored already: their names follow from their content."""

from fmscale.errors import ObjectNotFound, StoreUnavailable
from fmscale.store.backends.protocol import Backend


def store_once(backend: Backend, key: str, data: bytes) -> bool:
    """Make sure that `key` holds something. True if that is `data`, whoever wrote it.

    A create whose answer was lost is resolved by reading back. Raises StoreUnavailable where that is not
    possible either, and what the store raises.
    """
    try:
        if backend.put_if_absent(key, data):
            return True
    except StoreUnavailable as unknown:
        try:
            return backend.get(key) == data
        except (ObjectNotFound, StoreUnavailable):
            raise unknown from None
    return backend.get(key) == data
