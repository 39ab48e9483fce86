"""Keys that every store accepts, so that objects can move between stores."""

from fmscale.errors import AccessDenied, CorruptData, StoreError

TEMPORARY_PREFIX = ".fmscale-tmp-"
"""Start of a local file's name until the file is complete; no segment of a key may start with it."""

MAX_KEY_BYTES = 900
"""Limit of a key: S3 and GCS allow 1024 bytes of UTF-8 for the key together with the prefix in the store's URL."""

MAX_SEGMENT_BYTES = 255
"""The longest file name that ext4, XFS and Lustre take."""


def check_key(key: str) -> str:
    """The key itself if every backend can store it.

    Raises StoreError for an absolute or empty key, for `.` and `..`, for control characters and
    backslashes, and for a key or segment that is longer than POSIX or S3 allow.
    """
    problem = _problem(key)
    if problem:
        raise StoreError(
            f"a key must be a relative path of plain segments, but this one {problem}",
            found=key,
            remedy="Use segments of printable characters joined by single slashes.",
        )
    return key


def check_prefix(prefix: str) -> str:
    """The folder to list, without its trailing slash: empty for the root, else checked like a key."""
    stripped = prefix.removesuffix("/")
    return check_key(stripped) if stripped else ""


def _problem(key: str) -> str:
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} bytes"
    if not key.isprintable() or "\\" in key:
        return "has control characters or a backslash"
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}"
        if segment.startswith(TEMPORARY_PREFIX):
            return f"has a segment starting with {TEMPORARY_PREFIX!r}, which is reserved"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    return ""


def check_writable(key: str, read_only: bool) -> str:
    """The key, checked as in `check_key`. Raises AccessDenied if the store is open for reading only."""
    check_key(key)
    if read_only:
        raise AccessDenied(
            "the store is open for reading only",
            found=key,
            remedy="Open it without read_only (or without ?read_only=true in its URL) to write.",
        )
    return key


def truncated(key: str, start: int, asked: int, got: int) -> CorruptData:
    """Error of a read from `start` on that asked for `asked` bytes and got `got` bytes."""
    return CorruptData(
        "the object ends before the bytes that were asked for",
        found=f"{key}: {start + got} bytes, asked for {start} to {start + asked}",
        remedy=damaged(key),
    )


def missing(key: str) -> str:
    """Remedy for a missing object."""
    return f"Check the key and the store's URL; {_verify(key)} names every object that is gone."


def damaged(key: str) -> str:
    """Remedy for a damaged object."""
    if key.startswith("runs/"):
        return f"{_verify(key)} names all damage; restore the object from a copy, or use another step."
    return f"Run {_verify(key)}; restore the object from a copy or retire its commit."


def _verify(key: str) -> str:
    return "`fmscale checkpoint verify STORE#RUN@STEP`" if key.startswith("runs/") else "`fmscale dataset verify`"
