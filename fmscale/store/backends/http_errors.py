"""Meaning of an object store's failed answer: a repeat, or an error with its remedy.

obstore reports HTTP failures as text ("... status code: 503 ...: <Error><Code>SlowDown</Code>"); only this
module reads status and code from the text. Messages show at most its first line, scrubbed.
"""

import re
from dataclasses import dataclass

from obstore.exceptions import AlreadyExistsError, PermissionDeniedError, UnauthenticatedError

from fmscale.errors import AccessDenied, CorruptData, ObjectNotFound, StoreError, StoreFull
from fmscale.store.keys import damaged, missing
from fmscale.text import scrub

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")

NO_CREDENTIALS = "no credentials in environment or profile, and no answer from the instance role's service"
_ROLE_SERVICE = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity")

_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "InternalError", "OperationAborted"}
_FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "EntityTooLargeForQuota"}
_DENIED = {
    "InvalidAccessKeyId": "The access key is unknown to this store: check AWS_ACCESS_KEY_ID or the profile.",
    "SignatureDoesNotMatch": "The secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "The session token has expired: log in again or use a role that refreshes.",
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it (NTP) and try again.",
    "AccessDenied": "Give these credentials the right to this bucket and prefix (get, put, list, delete).",
}
_DENIED_DEFAULT = "Check the credentials (environment, profile or instance role) and their rights here."


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Meaning of one failed attempt."""

    error: StoreError | None
    """Error to raise at once; None when the attempt may be repeated."""
    summary: str
    """Short, scrubbed description of the answer."""
    maybe_done: bool
    """True if the request may have taken effect although it failed."""
    connected: bool
    """True if any answer came from the store, even half a body."""


def no_credentials(url: str) -> AccessDenied:
    """Error for a store that was never reached, as no source gave a credential."""
    return AccessDenied(
        "there are no credentials for this store",
        found=f"{NO_CREDENTIALS}, for {url}",
        remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a ?profile=, or add ?anonymous=true "
        "for a public bucket (Google and Azure: their own variables).",
    )


def understand(error: Exception, key: str, url: str) -> Answer:
    """Meaning of an exception of obstore; messages name `key` and `url`."""
    text = str(error)
    status_match, code_match = _STATUS.search(text), _CODE.search(text)
    status = int(status_match.group(1)) if status_match else 0
    code = code_match.group(1) if code_match else ""
    summary = _summary(text, status, code)
    fatal = _fatal(error, status, code, key, url, summary, text)
    refused = "ConnectionRefused" in text or "dns error" in text
    return Answer(
        error=fatal,
        summary=summary,
        maybe_done=status not in (409, 429) and not refused,
        connected=summary != NO_CREDENTIALS and (status != 0 or "response body error" in text),
    )


def _summary(text: str, status: int, code: str) -> str:
    if any(path in text for path in _ROLE_SERVICE):
        return NO_CREDENTIALS
    if status:
        return f"HTTP {status}" + (f" {code}" if code else "")
    for mark, meaning in (
        ("ConnectionRefused", "connection refused"),
        ("dns error", "host name not found"),
        ("ConnectionReset", "connection reset"),
        ("IncompleteMessage", "connection closed before the answer was complete"),
        ("TimedOut", "no answer in time"),
        ("Timeout", "no answer in time"),
    ):
        if mark in text:
            return meaning
    return scrub(text.split("\n", 1)[0])[:200]


def _fatal(error: Exception, status: int, code: str, key: str, url: str, summary: str, text: str) -> StoreError | None:
    if code == "NoSuchBucket" or (status == 404 and code == "ContainerNotFound"):
        return StoreError(
            "the bucket does not exist",
            found=url,
            remedy="Create it, or correct the store URL (bucket, endpoint, region).",
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return ObjectNotFound("no object under this key", found=f"{key} in {url}", remedy=missing(key))
    if status == 416 or "InMemory error: Invalid range" in text:
        return CorruptData(
            "the object ends before the bytes that were asked for", found=f"{key} in {url}", remedy=damaged(key)
        )
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403)
    if code in _TRANSIENT_CODES:
        return None
    if denied or code in _DENIED:
        return AccessDenied(
            "the store refused the credentials" if code != "AccessDenied" else "the store denied access",
            found=f"{summary} for {key or 'the listing'} in {url}",
            remedy=_DENIED.get(code, _DENIED_DEFAULT),
        )
    if status == 507 or code in _FULL_CODES:
        return StoreFull(
            "the store is full or over its quota",
            found=f"{summary} for {key} in {url}",
            remedy="Free space, raise the quota or choose another store.",
        )
    if status in _TRANSIENT_STATUS or isinstance(error, AlreadyExistsError):
        return None
    if status == 0 and "certificate" in text.lower():
        return StoreError(
            "the endpoint's certificate was not accepted",
            found=f"{summary} at {url}",
            remedy="Use the host name in the certificate, or add its CA to the system's trust store.",
        )
    if "object with invalid path" in text:
        return StoreError(
            "the listing has a key that the store's client cannot take, such as a//b or one with a control character",
            found=f"{summary} for {key or 'the listing'} in {url}",
            remedy="Rename or delete this object, or name the folders beside it: the client gives no part of the page.",
        )
    if status == 0 and ("HTTP error" in text or "CredentialsError" in text or "error sending" in text):
        return None
    return StoreError(
        "the store refused the request",
        found=f"{summary} for {key or 'the listing'} in {url}",
        remedy="`fmscale doctor` shows what this store can do.",
    )
