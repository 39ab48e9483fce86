"""Errors that a user can act on, each with its cause, the value found and a remedy (promise P9)."""

from typing import ClassVar

from fmscale.text import clean


class FmscaleError(Exception):
    """Base of every error that fmscale raises on purpose.

    `cause` is one sentence about what went wrong, `found` the offending value, `remedy` what to change. They are read
    without credentials, and on one line, whatever they were made of.
    """

    several_lines: ClassVar[bool] = False
    """True for an error whose line breaks are its own."""

    def __init__(self, cause: str, *, found: object = None, remedy: str = "") -> None:
        self._parts = cause, found, remedy
        message = cause
        if found is not None:
            message += f": found {found!r}"
        if remedy:
            message += f". {remedy}"
        super().__init__(message)

    @property
    def cause(self) -> str:
        return self._clean(self._parts[0])

    @property
    def found(self) -> object:
        return self._clean(self._parts[1]) if isinstance(self._parts[1], str) else self._parts[1]

    @property
    def remedy(self) -> str:
        return self._clean(self._parts[2])

    def __str__(self) -> str:
        return self._clean(str(self.args[0]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def _clean(self, text: str) -> str:
        # Only when it is read: an error that the code expects, such as a missing object, costs nothing.
        return "\n".join(map(clean, text.split("\n"))) if self.several_lines else clean(text)


class ConfigError(FmscaleError):
    """A configuration or command-line value that cannot be used."""


class StoreError(FmscaleError):
    """The store refused a request, failed, or does not support the request."""


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
    """Input documents, datasets or views that a call cannot use."""


class Conflict(StoreError):
    """A commit is incompatible with another commit that was made meanwhile."""


class LeaseLost(StoreError):
    """A newer holder took the lease; this process may not write to the log any more."""


class KernelError(FmscaleError):
    """A kernel or backend that does not support a call with these tensors on this device."""


class RankError(FmscaleError):
    """Another rank failed, did not answer in time, or cannot be reached."""
