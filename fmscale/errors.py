"""Errors that a user can act on: what happened, what was found, what to change (promise P9)."""


class FmscaleError(Exception):
    """Base of every error fmscale raises on purpose.

    `cause` is one sentence about what went wrong, `found` the offending value (never a credential),
    `remedy` what to change.
    """

    def __init__(self, cause: str, *, found: object = None, remedy: str = "") -> None:
        self.cause = cause
        self.found = found
        self.remedy = remedy
        message = cause
        if found is not None:
            message += f": found {found!r}"
        if remedy:
            message += f". {remedy}"
        super().__init__(message)


class ConfigError(FmscaleError):
    """A configuration or command-line value that cannot be used."""


class StoreError(FmscaleError):
    """The store refused, failed or cannot do what was asked."""


class ObjectNotFound(StoreError):
    """No object under the key."""


class StoreUnavailable(StoreError):
    """The store did not answer within the deadline, after retries."""


class AccessDenied(StoreError):
    """Credentials are missing, wrong or without the needed right; or the store is read-only."""


class StoreFull(StoreError):
    """No space or quota left."""


class CorruptData(StoreError):
    """Bytes do not match the digest or checksum recorded for them."""


class FormatError(StoreError):
    """A stored file is of an unknown format or format_version."""


class DataError(FmscaleError):
    """Input documents, datasets or views that cannot be used as asked."""


class Conflict(StoreError):
    """Something committed meanwhile does not go together with what was to be committed."""


class LeaseLost(StoreError):
    """A newer holder took the lease; this process may not write to the log any more."""


class KernelError(FmscaleError):
    """A kernel or backend that cannot do what was asked of it, with these tensors on this device."""


class RankError(FmscaleError):
    """Another rank failed, did not answer in time, or cannot be reached."""
