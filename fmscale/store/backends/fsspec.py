"""Stores through fsspec (http, hdfs, sftp, zip, …): open for reading, and for writing after `probe`.

fsspec promises neither conditional creation nor durability: most of its file systems check for the name and
then write. So the backend refuses writes until `probe` has raced 16 writers and seen one winner for each key.
The fsspec implementation limits the time of a call; this module limits only the repeats.
"""

import errno
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fmscale.errors import AccessDenied, ConfigError, ObjectNotFound, StoreError, StoreFull, StoreUnavailable
from fmscale.store.backends.http_errors import Answer
from fmscale.store.backends.protocol import Backend, ObjectInfo, Requests, scatter
from fmscale.store.backends.retry import Attempts, RetryPolicy, retried, unavailable
from fmscale.store.keys import check_key, check_prefix, check_writable, missing, truncated
from fmscale.text import scrub

T = TypeVar("T")


class FsspecBackend(Backend):
    """A `Backend` over one folder of an fsspec file system."""

    def __init__(self, url: str, *, policy: RetryPolicy, read_only: bool = False) -> None:
        """Open the file system. Raises ConfigError for a protocol that is unknown, not installed or lacks settings, and
        StoreUnavailable for a server that does not answer.
        """
        import fsspec.core

        self.url = scrub(url, {})
        self.requests = Requests()
        self.read_only = read_only
        self.accepts_writes = False
        """Set by `probe` after a race with exactly one winner for each key."""
        self.policy = policy
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (OSError, EOFError) as error:  # some connect at once
            raise StoreUnavailable(
                "the store does not answer, or is not there",
                found=f"{type(error).__name__}: {error} for {self.url}",
                remedy="Check the URL, and that its server can be reached from here.",
            ) from error
        except Exception as error:  # of some fifty packages
            raise ConfigError(
                "no store can be opened for this URL",
                found=self.url,
                remedy=f"Use a path, s3://, gs://, az:// or an fsspec protocol ({scrub(str(error))}).",
            ) from error
        self._root = root.rstrip("/")

    def get(self, key: str) -> bytes:
        data = self._persist(lambda _: bytes(self._files.cat_file(self._path(key))), "get", key)
        self.requests.add("get", len(data))
        return data

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        length = sum(buffer.nbytes for buffer in buffers)
        if length:
            scatter(self.read(key, start, length), buffers)

    def read(self, key: str, start: int, length: int) -> memoryview:
        path = self._path(key)
        data = self._persist(
            lambda _: bytes(self._files.cat_file(path, start=start, end=start + length)), "get_range", key
        )
        self.requests.add("get_range", len(data))
        if len(data) != length:
            raise truncated(key, start, length, len(data))
        return memoryview(data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = self._writable(key)
        self._persist(lambda _: self._create(path, bytes(data), "overwrite"), "put", key)
        self.requests.add("put", len(data))

    def put_file(self, key: str, path: Path) -> None:
        target = self._writable(key)
        self._make_folder(target)
        self._persist(lambda _: self._files.put_file(str(path), target), "put", key)
        self.requests.add("put", path.stat().st_size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._writable(key)

        def attempt(attempts: Attempts) -> bool:
            try:
                self._create(path, data, "create")
            except FileExistsError as error:
                if attempts.maybe_done:
                    raise unavailable(f"put_if_absent of {key}", self.url, attempts, 0.0) from error
                return False
            return True

        created = self._persist(attempt, "put_if_absent", key)
        self.requests.add("put_if_absent", len(data))
        return created

    def head(self, key: str) -> ObjectInfo:
        info = self._persist(lambda _: self._files.info(self._path(key)), "head", key)
        self.requests.add("head")
        if info["type"] != "file":
            raise ObjectNotFound(
                "no object under this key (a folder is there)", found=f"{key} in {self.url}", remedy=missing(key)
            )
        return _info(key, info)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        folder = f"{self._root}/{prefix}" if prefix else self._root
        files = self._list(lambda: self._files.find(folder, detail=True), prefix)
        inside = [(name[len(self._root) :].lstrip("/"), info) for name, info in (files or {}).items()]
        return iter([_info(key, info) for key, info in sorted(inside) if key != prefix])

    def list_names(self, prefix: str = "") -> list[str]:
        prefix = check_prefix(prefix)
        folder = f"{self._root}/{prefix}" if prefix else self._root
        paths = self._list(lambda: self._files.ls(folder, detail=False), prefix)
        names = (path.rstrip("/") for path in paths or [] if path.rstrip("/") != folder)
        return sorted({name.rsplit("/", 1)[-1] for name in names})

    def delete(self, key: str) -> None:
        path = self._writable(key)
        try:
            self._persist(lambda _: self._files.rm_file(path), "delete", key)
        except ObjectNotFound:
            return
        finally:
            self.requests.add("delete")

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}" if self._root else check_key(key)

    def _create(self, path: str, data: bytes, mode: str) -> None:
        try:
            self._files.pipe_file(path, data, mode=mode)
        except FileNotFoundError:
            # A file system needs the folder first; stores of flat keys never raise this error.
            self._make_folder(path)
            self._files.pipe_file(path, data, mode=mode)

    def _make_folder(self, path: str) -> None:
        if not self._files.exists(path.rsplit("/", 1)[0]):
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)

    def _list(self, ask: Callable[[], T], prefix: str) -> T | None:
        self._files.invalidate_cache()
        try:
            return self._persist(lambda _: ask(), "list", prefix)
        except ObjectNotFound:
            return None
        finally:
            self.requests.add("list")

    def _writable(self, key: str) -> str:
        check_writable(key, self.read_only)
        if not self.accepts_writes:
            raise AccessDenied(
                "a store of this kind is read-only until a probe has shown that it creates exactly once",
                found=self.url,
                remedy="Run `fmscale doctor` on it, or write to a path, s3://, gs:// or az:// store.",
            )
        return self._path(key)

    def _persist(self, attempt: Callable[[Attempts], T], kind: str, key: str) -> T:
        answer_of = partial(_understand, key=key, url=self.url)
        return retried(attempt, answer_of, self.policy, what=f"{kind} of {key or 'the root'}", url=self.url)


def _info(key: str, info: dict[str, Any]) -> ObjectInfo:
    modified = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created")
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    seconds = float(modified) if isinstance(modified, int | float) else 0.0
    etag = str(info.get("ETag") or info.get("etag") or "")
    return ObjectInfo(key=key, bytes=int(info.get("size") or 0), modified=seconds, etag=etag)


def _understand(error: Exception, key: str, url: str) -> Answer:
    summary = scrub(f"{type(error).__name__}: {error}".split("\n", 1)[0])[:200]
    network = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("aiohttp")
    return Answer(
        error=None if network else _fatal(error, key, f"{summary} for {key or 'the listing'} in {url}"),
        summary=summary,
        maybe_done=True,
        connected=True,
    )


def _fatal(error: Exception, key: str, where: str) -> StoreError:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | KeyError):
        return ObjectNotFound("no object under this key", found=where, remedy=missing(key))
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return AccessDenied("the store denied access", found=where, remedy="Check the credentials and rights.")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("the store is full", found=where, remedy="Free space or choose another store.")
    return StoreError(
        "the store refused the request", found=where, remedy="`fmscale doctor` shows what this store can do."
    )
