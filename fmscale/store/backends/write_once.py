"""Creation of objects that anybody may have stored already: their names follow from their content."""

from fmscale.errors import ObjectNotFound, StoreUnavailable
from fmscale.store.backends.protocol import Backend


def created(backend: Backend, key: str, data: bytes) -> bool:
    """Create `key`. True if this call did, provided that nobody else writes this `data`: where the answer was lost,
    the object itself tells.

    Raises StoreUnavailable where reading back is not possible either, and what the store raises.
    """
    try:
        return backend.put_if_absent(key, data)
    except StoreUnavailable as unknown:
        try:
            return backend.get(key) == data
        except (ObjectNotFound, StoreUnavailable):
            raise unknown from None


def store_once(backend: Backend, key: str, data: bytes) -> bool:
    """Make sure that `key` holds something. True if that is `data`, whoever wrote it. Raises as `created`."""
    return created(backend, key, data) or backend.get(key) == data
