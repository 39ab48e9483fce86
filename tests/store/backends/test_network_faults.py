"""A real S3 server behind a faulty proxy: every call succeeds or reports its error, in time."""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fmscale.errors import AccessDenied, FmscaleError, ObjectNotFound, StoreError, StoreUnavailable
from fmscale.store.backends import retry
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.s3_server import S3Server

DATA = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def running_proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.host, s3.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: FaultProxy) -> Iterator[FaultProxy]:
    yield running_proxy
    running_proxy.clear()


@pytest.fixture
def url(s3: S3Server, s3_bucket: str, proxy: FaultProxy) -> str:
    return s3.url(s3_bucket, uuid.uuid4().hex, endpoint=proxy.endpoint)


def in_time(seconds: float, call: Callable[[], object]) -> object:
    begin = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - begin < seconds


def calls(store: Backend) -> dict[str, Callable[[], object]]:
    """Calls by name; each returns True if its result is right."""

    def done(call: Callable[..., None], *args: Any) -> bool:
        call(*args)
        return True

    return {
        "get": lambda: store.get("x") == DATA,
        "read_into": lambda: done(store.read_into, "x", 10, memoryview(bytearray(500_000))),
        "head": lambda: store.head("x").bytes == len(DATA),
        "exists": lambda: store.exists("x"),
        "list_objects": lambda: [one.key for one in store.list_objects()] == ["x"],
        "list_names": lambda: store.list_names() == ["x"],
        "put": lambda: done(store.put, "x", DATA),
        "put_if_absent": lambda: store.put_if_absent("x", DATA) is False,
        "delete": lambda: done(store.delete, "y"),
    }


NAMES = (
    "get",
    "read_into",
    "head",
    "exists",
    "list_objects",
    "list_names",
    "put",
    "put_if_absent",
    "delete",
)


def at_once(store: Backend, names: list[str], seconds: float) -> None:
    """All the calls at the same time, each in its time and with its right result."""
    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(lambda name: in_time(seconds, calls(store)[name]), names))
    assert dict(zip(names, results, strict=True)) == dict.fromkeys(names, True)


def test_burst_of_503_is_survived_by_every_call(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=20)
    store.put("x", DATA)
    before = proxy.counters().get("503", 0)
    proxy.inject("503", seconds=1)
    # put_if_absent has a test of its own.
    at_once(store, [name for name in NAMES if name != "put_if_absent"], 8)
    assert proxy.counters()["503"] - before >= len(NAMES) - 1


def test_put_if_absent_of_an_existing_key_after_503_is_uncertain(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=20)
    store.put("x", DATA)
    proxy.inject("503", count=1)
    # After a possibly late answer, "it exists" may mean "you created it": not False.
    with pytest.raises(StoreUnavailable, match="may have created it"):
        store.put_if_absent("x", b"")
    assert store.put_if_absent("x", b"") is False


@pytest.mark.slow
def test_503_for_half_a_minute_is_survived_with_the_default_deadline(url: str, proxy: FaultProxy) -> None:
    store = open_store(url)
    store.put("x", DATA)
    proxy.inject("503", seconds=30)
    begin = time.monotonic()
    assert store.get("x") == DATA
    assert 30 <= time.monotonic() - begin < 36


@pytest.mark.slow
def test_stall_of_20_seconds_is_cut_and_repeated_with_the_default_deadline(url: str, proxy: FaultProxy) -> None:
    store = open_store(url)
    store.put("x", DATA)
    proxy.inject("stall", count=1, stall=20)
    begin = time.monotonic()
    assert store.get("x") == DATA
    assert 9 <= time.monotonic() - begin < 13


@pytest.mark.parametrize("name", ["get", "put", "put_if_absent"])
def test_endless_503_names_what_was_tried_within_the_deadline(url: str, proxy: FaultProxy, name: str) -> None:
    store = open_store(url, deadline=2)
    proxy.inject("503")
    with pytest.raises(StoreUnavailable, match=r"HTTP 503 SlowDown .*attempts: [2-9]") as caught:
        in_time(3, calls(store)[name])
    assert name in caught.value.cause
    assert caught.value.remedy
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("kind", ["stall", "stall-body"])
def test_stall_is_cut_and_repeated(url: str, proxy: FaultProxy, kind: str) -> None:
    store = open_store(url, deadline=8)
    store.put("x", DATA)
    proxy.inject(kind, count=2, method="GET", after_bytes=4, stall=30)
    # The limit without a byte is a quarter of the deadline; for a whole request it is half.
    at_once(store, ["get", "read_into"], 3.8)


def test_stalled_write_is_cut_and_repeated(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=5)
    proxy.inject("stall", count=1, method="PUT", stall=30)
    in_time(5, lambda: store.put("x", DATA))
    assert store.get("x") == DATA


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000])
def test_reset_within_a_body_is_repeated(url: str, proxy: FaultProxy, after_bytes: int) -> None:
    store = open_store(url, deadline=20)
    store.put("x", DATA)
    for name in ("get", "read_into"):
        proxy.inject("reset", count=2, method="GET", after_bytes=after_bytes)
        assert in_time(8, calls(store)[name]) is True


def test_lost_answer_of_put_is_repeated(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=20)
    proxy.inject("lose", count=2, method="PUT")
    store.put("x", DATA)
    assert store.get("x") == DATA


@pytest.mark.parametrize("kind", ["lose", "503-after"])
def test_lost_answer_of_put_if_absent_is_never_false(url: str, proxy: FaultProxy, kind: str) -> None:
    store = open_store(url, deadline=20)
    proxy.inject(kind, count=1, method="PUT")
    with pytest.raises(StoreUnavailable, match="may have created it"):
        store.put_if_absent("k", b"mine")
    assert store.get("k") == b"mine"
    assert store.put_if_absent("k", b"other") is False


def test_put_if_absent_that_never_arrived_is_repeated(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=20)
    proxy.inject("503", count=2, method="PUT")
    assert store.put_if_absent("k", b"mine") is True


def test_conflict_of_two_creates_is_no_answer_and_is_repeated(url: str, proxy: FaultProxy) -> None:
    store = open_store(url, deadline=20)
    proxy.inject("409", count=2, method="PUT")
    assert store.put_if_absent("k", b"mine") is True
    proxy.inject("409", count=2, method="PUT")
    assert store.put_if_absent("k", b"other") is False, "a conflict has no effect: nothing is uncertain"


def test_upload_in_parts_survives_503_and_resets(url: str, proxy: FaultProxy, tmp_path: object) -> None:
    store = open_store(url, deadline=20)
    data = DATA * 40
    proxy.inject("503", count=3)
    proxy.inject("lose", count=1, method="PUT", path_part="partNumber=2")
    store.put("big", data)
    assert store.get("big") == data


@pytest.mark.parametrize("name", NAMES)
def test_wrong_secret_is_said_at_once(url: str, proxy: FaultProxy, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a-wrong-secret-98765"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = open_store(url)
    before = proxy.requests()
    with pytest.raises(AccessDenied) as caught:
        in_time(2, calls(store)[name])
    assert proxy.requests() - before <= 1, "one request, not repeated"
    _no_secrets(caught.value, secret)
    if name not in ("head", "exists"):
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy


def test_unknown_access_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-we-know")
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        open_store(url).get("x")


def test_missing_bucket_is_not_a_missing_object(s3: S3Server) -> None:
    store = open_store(s3.url("no-such-bucket"))
    for name in ("get", "put", "put_if_absent", "list_names", "list_objects"):
        with pytest.raises(StoreError, match="bucket does not exist") as caught:
            calls(store)[name]()
        assert not isinstance(caught.value, ObjectNotFound)
        assert "Create it" in caught.value.remedy


def test_unreachable_endpoint_is_given_up_early(s3: S3Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = open_store(s3.url("bucket", endpoint=nobody), deadline=2)
        with pytest.raises(StoreUnavailable, match="connection refused") as caught:
            in_time(3, lambda: store.get("x"))
    assert nobody in str(caught.value)


def test_endpoint_that_never_answered_does_not_cost_the_whole_deadline(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_CONTACT", 0.3)
    store = open_store(s3.url("bucket", endpoint="http://127.0.0.1:9"), deadline=60)
    with pytest.raises(StoreUnavailable, match="connection refused"):
        in_time(3, lambda: store.get("x"))


@pytest.mark.parametrize("first", ["503", "reset"])
def test_endpoint_that_failed_first_is_not_taken_for_one_that_never_answered(
    first: str, url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(url).put("x", DATA)
    monkeypatch.setattr(retry, "FIRST_CONTACT", 0.0)
    proxy.inject(first, count=1, method="GET", after_bytes=4)
    proxy.inject("lose", count=2, method="GET")
    assert open_store(url).get("x") == DATA


def test_silent_endpoint_is_given_up(s3: S3Server) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        store = open_store(s3.url("bucket", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"), deadline=3)
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            in_time(6, lambda: store.get("x"))


def test_unknown_host(s3: S3Server) -> None:
    store = open_store(s3.url("bucket", endpoint="http://no-such-host.invalid:80"), deadline=2)
    with pytest.raises(StoreUnavailable, match="host name not found"):
        in_time(4, lambda: store.get("x"))


def test_no_credentials_anywhere(s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    # The address of the instance role's service: on this loopback port nobody answers, as off a cloud.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    store = open_store(s3.url(s3_bucket), deadline=4)
    with pytest.raises(AccessDenied, match="no credentials") as caught:
        in_time(6, lambda: store.get("x"))
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


def _no_secrets(error: BaseException, secret: str) -> None:
    seen: BaseException | None = error
    assert isinstance(error, FmscaleError)
    assert secret not in str(error)
    assert "Signature=" not in str(error)
    while seen is not None:
        assert secret not in repr(seen)
        seen = seen.__cause__
