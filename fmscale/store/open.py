"""Opens a store by its URL: chooses the backend and passes options and credentials to it.

    /data/store  file:///data/store                                        local directory
    s3://bucket/prefix?endpoint=http://host:9000&region=us-east-1          S3 and stores with its protocol
    gs://bucket/prefix   az://container/prefix                             Google Cloud, Azure
    memory://name                                                          this process only; for tests
    any other protocol of fsspec                                           read-only until `probe` passes

Options in the query: `read_only`, and for S3 `endpoint`, `region`, `profile`, `anonymous`. Credentials come
from the environment, the profile file or the instance's role, never from the URL.
"""

import difflib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from fmscale.errors import ConfigError
from fmscale.store.backends.local import LocalBackend
from fmscale.store.backends.protocol import Backend
from fmscale.store.keys import check_prefix
from fmscale.text import scrub

DEADLINE = 60.0
"""Seconds for an operation: it outlasts half a minute, the time that a restart of a storage gateway takes."""
LONGEST_STALL = 10.0
"""Seconds without a byte after which a request is cut and repeated."""
CREATE_STALL = 20.0
"""Seconds for a conditional put: SeaweedFS answers the last of 16 losers after 7 s, and a cut request leaves its
outcome uncertain."""
BULK_STALL = 60.0
"""Seconds for a part of an upload: its answer comes after 16 MiB, so 0.3 MB/s is fast enough."""

if TYPE_CHECKING:
    from obstore.store import ClientConfig, MemoryStore, RetryConfig, S3Store

    from fmscale.store.backends.objects import Client

_COMMON = {"read_only"}
_S3_OPTIONS = {"endpoint", "region", "profile", "anonymous"}
_SETTINGS = {
    "s3": "Check AWS_REGION and the other AWS_ variables, the endpoint and the region.",
    "gs": "Set GOOGLE_SERVICE_ACCOUNT to a key file, or use application default credentials.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or a service principal.",
}
_memory: "dict[str, MemoryStore]" = {}
_memory_lock = Lock()


@dataclass(frozen=True, kw_only=True)
class Location:
    """Parts of a store URL."""

    scheme: str
    """s3, gs, az, memory, file or a protocol of fsspec."""
    bucket: str
    """Bucket, container or memory store; for file the absolute path."""
    prefix: str
    """Folder inside the bucket; may be empty."""
    options: dict[str, str]
    """The query."""
    shown: str
    """The URL for people, without credentials."""

    @property
    def read_only(self) -> bool:
        """True if the URL asks for a read-only store. Raises ConfigError for a value other than true or false."""
        return _flag(self, "read_only")


def open_store(url: str, *, read_only: bool = False, deadline: float = DEADLINE) -> Backend:
    """Open the store at `url`, without a request to a remote store yet.

    `deadline` bounds each operation in seconds, retries included. Raises ConfigError for a URL that cannot be
    used, StoreError or AccessDenied for a local directory that cannot be used.
    """
    place = parse_url(url)
    read_only = read_only or place.read_only
    if place.scheme == "file":
        return LocalBackend(Path(place.bucket), read_only=read_only)
    # A local store does without fsspec and the clients of remote stores, 4 and 5 ms of every start.
    if place.scheme not in ("memory", "s3", "gs", "az"):
        from fmscale.store.backends.fsspec import FsspecBackend
        from fmscale.store.backends.retry import RetryPolicy

        policy = RetryPolicy(deadline=deadline, stall=min(LONGEST_STALL, deadline / 4))
        return FsspecBackend(url, policy=policy, read_only=read_only)
    from fmscale.store.backends.objects import ObjectBackend

    return ObjectBackend(
        single=_client(place, deadline, min(LONGEST_STALL, deadline / 4), repeats=0),
        create=_client(place, deadline, min(CREATE_STALL, deadline / 3), repeats=0),
        bulk=_client(place, deadline, min(BULK_STALL, deadline), repeats=20),
        url=place.shown,
        read_only=read_only,
    )


def parse_url(url: str) -> Location:
    """Parse a store URL. Raises ConfigError, whose text never shows a possible credential."""
    if "://" not in url:
        return _location("file", str(Path(url).expanduser().absolute()), "", {}, Path(url).absolute().as_uri())
    parts = _split(url)
    scheme = {"s3a": "s3", "gcs": "gs", "abfs": "az", "azure": "az"}.get(parts.scheme, parts.scheme)
    if ("@" in parts.netloc or (":" in parts.netloc and "@" in url)) and scheme in ("s3", "gs", "az"):
        raise ConfigError(
            "a store URL must not contain credentials",
            found=scrub(url),
            remedy="Put them into the environment (AWS_ACCESS_KEY_ID, …), a profile or a role.",
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme == "file":
        _check_options(scheme, options, _COMMON)
        return _location("file", unquote(parts.path), "", options, f"file://{parts.path}")
    if scheme not in ("s3", "gs", "az", "memory"):
        return _location(scheme, parts.netloc, parts.path.strip("/"), options, url)
    _check_options(scheme, options, _COMMON | (_S3_OPTIONS if scheme == "s3" else set()))
    if not parts.netloc:
        raise ConfigError("the store URL names no bucket", found=url, remedy=f"Write {scheme}://BUCKET/PREFIX.")
    if scheme == "memory" and parts.path.strip("/"):
        raise ConfigError(
            "a memory store has no folders of its own", found=url, remedy="Write memory://NAME, without a path."
        )
    prefix = check_prefix(unquote(parts.path).strip("/"))
    shown = f"{scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")
    query = urlencode({k: v for k, v in options.items() if k in ("endpoint", "region")}, safe=":/")
    return _location(scheme, parts.netloc, prefix, options, shown + (f"?{query}" if query else ""))


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"not a URL: {error}", found=url, remedy="Write SCHEME://HOST/PATH.") from error


def _location(scheme: str, bucket: str, prefix: str, options: dict[str, str], shown: str) -> Location:
    return Location(scheme=scheme, bucket=bucket, prefix=prefix, options=options, shown=scrub(shown, {}))


def _check_options(scheme: str, options: dict[str, str], known: set[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"a {scheme} store URL has no such option",
                found=name,
                remedy=f"Did you mean {near[0]!r}?" if near else f"Valid: {', '.join(sorted(known))}.",
            )


def _flag(place: Location, name: str) -> bool:
    value = place.options.get(name, "false").lower()
    if value not in ("", "true", "1", "false", "0"):
        raise ConfigError(f"the option {name} is true or false", found=value, remedy=f"Write {name}=true.")
    return value in ("", "true", "1")


def _client(place: Location, deadline: float, stall: float, *, repeats: int) -> "Client":
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, MemoryStore

    from fmscale.store.backends.objects import Client
    from fmscale.store.backends.retry import RetryPolicy

    policy = RetryPolicy(deadline=deadline, stall=stall)
    if place.scheme == "memory":
        with _memory_lock:
            return Client(_memory.setdefault(place.bucket, MemoryStore()), policy)
    limits: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(5.0, stall)),
        "read_timeout": timedelta(seconds=stall),
        # A request to a very slow server is cut too: 16 MiB in half a minute is 0.5 MB/s.
        "timeout": timedelta(seconds=max(deadline / 2, 2 * stall)),
    }
    retry: RetryConfig = {"max_retries": repeats, "retry_timeout": timedelta(seconds=deadline)}
    try:
        if place.scheme == "s3":
            return Client(_s3(place, limits, retry), policy)
        kind = GCSStore if place.scheme == "gs" else AzureStore
        store = kind(place.bucket, prefix=place.prefix or None, client_options=limits, retry_config=retry)
        return Client(store, policy)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            "the store cannot be opened with these settings",
            found=f"{place.shown} ({scrub(str(error).splitlines()[0])})",
            remedy=_SETTINGS[place.scheme],
        ) from error


def _s3(place: Location, limits: "ClientConfig", retry: "RetryConfig") -> "S3Store":
    from obstore.store import S3Store

    options: dict[str, Any] = {"virtual_hosted_style_request": False} if "endpoint" in place.options else {}
    endpoint = place.options.get("endpoint")
    if endpoint:
        if _split(endpoint).scheme not in ("http", "https") or not _split(endpoint).hostname:
            raise ConfigError(
                "the endpoint is not a URL", found=scrub(endpoint), remedy="Write http://HOST:PORT or https://HOST."
            )
        if urlsplit(endpoint).username:
            raise ConfigError(
                "the endpoint must not contain credentials",
                found=scrub(endpoint),
                remedy="Put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile.",
            )
        options["endpoint"] = endpoint
        if endpoint.startswith("http://"):
            limits = {**limits, "allow_http": True}
            # Signing the payload costs 1.2 CPU seconds a GB, and the digests guard the same bytes already.
            options["unsigned_payload"] = True
    if "region" in place.options:
        options["region"] = place.options["region"]
    if _flag(place, "anonymous"):
        options["skip_signature"] = True
        provider = None
    else:
        from fmscale.store.backends.credentials import profile_credentials

        provider = profile_credentials(place.options.get("profile"))
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        client_options=limits,
        retry_config=retry,
        credential_provider=provider,
        **options,
    )
