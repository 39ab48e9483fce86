"""Objects on S3, GCS, Azure or in memory, through obstore (the Rust crate object_store).

obstore's own retries are off for single requests: after a lost answer obstore would repeat a conditional put and
report its own object as another writer's. `retried` repeats requests instead, and `put_if_absent` knows when an
earlier attempt may have taken effect.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import MemoryStore

from fmscale.errors import ObjectNotFound, StoreError, StoreUnavailable
from fmscale.store.backends.http_errors import NO_CREDENTIALS, Answer, no_credentials, understand
from fmscale.store.backends.protocol import Backend, ObjectInfo, Requests, scatter
from fmscale.store.backends.retry import Attempts, RetryPolicy, retried
from fmscale.store.keys import check_key, check_prefix, check_writable, truncated

T = TypeVar("T")

PIECE_BYTES = 16 << 20
"""Bytes of a range or an upload part of a larger object: a stall or reset then costs one part, and 10,000 parts
(S3's limit) make 156 GiB."""


_in_use = False
"""True after a request of this process: obstore's threads run."""
_orphaned = False
"""True in a process that was forked while they ran: a fork copies no threads, so requests would wait for ever."""


def _after_fork() -> None:
    global _orphaned
    _orphaned |= _in_use


os.register_at_fork(after_in_child=_after_fork)


class Client(NamedTuple):
    """An obstore store with its time limits."""

    store: Any
    """S3Store, GCSStore, AzureStore or MemoryStore."""
    policy: RetryPolicy
    """Deadline and stall limit of the store's requests."""


class ObjectBackend(Backend):
    """A `Backend` over obstore."""

    def __init__(self, *, single: Client, create: Client, bulk: Client, url: str, read_only: bool = False) -> None:
        """Use a client for each kind of request, as obstore sets time limits per store and not per request.

        `single` serves reads and small writes; `create` serves conditional puts, which a server may answer late under
        contention; `bulk` serves uploads in parts, and only there obstore itself repeats (single parts).
        """
        self.url = url
        self.requests = Requests()
        self.read_only = read_only
        self._single, self._create, self._bulk = single, create, bulk
        self._store = single.store
        self._contacted = False

    def get(self, key: str) -> bytes:
        check_key(key)

        def attempt(_: Attempts) -> tuple[int, bytes | None]:
            answer = obstore.get(self._store, key)
            size = int(answer.meta["size"])
            return size, bytes(answer.bytes()) if size <= PIECE_BYTES else None

        size, data = self._persist(attempt, "get", key)
        if data is not None:
            self.requests.add("get", len(data))
            return data
        whole = bytearray(size)
        for start in range(0, size, PIECE_BYTES):
            self.read_into(key, start, memoryview(whole)[start : start + PIECE_BYTES])
        return bytes(whole)

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        length = sum(buffer.nbytes for buffer in buffers)
        if length:
            scatter(self.read(key, start, length), buffers)

    def read(self, key: str, start: int, length: int) -> memoryview:
        check_key(key)
        data = self._persist(
            lambda _: obstore.get_range(self._store, key, start=start, length=length), "get_range", key
        )
        self.requests.add("get_range", len(data))
        if len(data) != length:
            raise truncated(key, start, length, len(data))
        return memoryview(data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        check_writable(key, self.read_only)
        if not isinstance(data, bytes) and isinstance(self._store, MemoryStore):
            data = bytes(data)  # MemoryStore would keep the caller's buffer, which may change
        self._upload(key, data, memoryview(data).nbytes)

    def put_file(self, key: str, path: Path) -> None:
        check_writable(key, self.read_only)
        size = path.stat().st_size
        self._upload(key, path if size > PIECE_BYTES else path.read_bytes(), size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        check_writable(key, self.read_only)
        client = self._create

        def attempt(attempts: Attempts) -> bool:
            try:
                obstore.put(client.store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                if "status code: 409" in str(error):
                    # S3 means "a conflicting operation occurred" and wants a repeat; it does not mean "exists".
                    raise
                if attempts.maybe_done:
                    raise StoreUnavailable(
                        "the answer to put_if_absent was lost and the key now exists: this call may have created it",
                        found=f"{key} in {self.url} (attempts: {attempts.count}, before: {attempts.last})",
                        remedy="Read the object back and compare it with what was to be written.",
                    ) from error
                return False
            return True

        created = self._persist(attempt, "put_if_absent", key, client.policy)
        self.requests.add("put_if_absent", len(data))
        return created

    def head(self, key: str) -> ObjectInfo:
        check_key(key)
        meta = self._persist(lambda _: obstore.head(self._store, key), "head", key)
        self.requests.add("head")
        return _info(meta, key)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        objects = self._persist(
            lambda _: [meta for page in obstore.list(self._store, prefix or None) for meta in page], "list", prefix
        )
        self.requests.add("list")
        # Some servers walk folders and give `a/b` before `a-b`; the protocol promises key order.
        return iter(sorted((_info(meta, meta["path"]) for meta in objects), key=lambda info: info.key))

    def list_names(self, prefix: str = "") -> list[str]:
        prefix = check_prefix(prefix)
        listing = self._persist(lambda _: obstore.list_with_delimiter(self._store, prefix or None), "list", prefix)
        self.requests.add("list")
        paths = [*listing["common_prefixes"], *(meta["path"] for meta in listing["objects"])]
        return sorted({path.rsplit("/", 1)[-1] for path in paths})

    def delete(self, key: str) -> None:
        check_writable(key, self.read_only)
        try:
            self._persist(lambda _: obstore.delete(self._store, key), "delete", key)
        except ObjectNotFound:
            return
        finally:
            self.requests.add("delete")

    def _upload(self, key: str, data: bytes | memoryview | Path, size: int) -> None:
        multipart = size > PIECE_BYTES
        client = self._bulk if multipart else self._single
        # S3 takes at most 10,000 parts.
        part = max(PIECE_BYTES, -(-size // 9_000))
        self._persist(
            lambda _: obstore.put(client.store, key, data, use_multipart=multipart, chunk_size=part, max_concurrency=4),
            "put",
            key,
            client.policy,
        )
        self.requests.add("put", size)

    def _persist(self, attempt: Callable[[Attempts], T], kind: str, key: str, policy: RetryPolicy | None = None) -> T:
        global _in_use
        if _orphaned:  # also with a new client, which has the same threads; its sockets would crash the parent
            raise StoreError(
                "a store that is no folder cannot be used in a process that was forked from one that uses such a store",
                found=f"{kind} of {key or 'the root'} in {self.url}, process {os.getpid()}",
                remedy="Start it by multiprocessing's `spawn` or `forkserver`, or fork before the first request.",
            )
        _in_use = True

        def answer_of(error: Exception) -> Answer:
            answer = understand(error, key, self.url)
            if answer.summary == NO_CREDENTIALS and not self._contacted:
                # After first contact the same failure is an outage of the role service, so requests are repeated.
                answer = replace(answer, error=no_credentials(self.url))
            self._contacted |= answer.connected
            self.requests.add(f"retried {kind}" if answer.error is None else f"failed {kind}")
            return answer

        result = retried(
            attempt,
            answer_of,
            policy or self._single.policy,
            what=f"{kind} of {key or 'the root'}",
            url=self.url,
            contacted=lambda: self._contacted,
        )
        self._contacted = True
        return result


def _info(meta: Any, key: str) -> ObjectInfo:
    modified = meta["last_modified"].timestamp()
    return ObjectInfo(key=key, bytes=int(meta["size"]), modified=modified, etag=meta.get("e_tag") or "")
