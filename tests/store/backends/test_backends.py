"""The contract of `Backend`, the same on a directory, in memory and on a real S3 server."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks.odd.bucket import Bucket
from fmscale.errors import AccessDenied, CorruptData, ObjectNotFound, StoreError
from fmscale.store.backends.objects import PIECE_BYTES
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.s3_server import S3Server

ODD_NAMES = [
    "with space",
    "ünïcødé-名前",
    "percent%20sign",
    "plus+and&",
    "hash#question?",
    "a=b,c;d",
    "star*~'",
]


def test_put_get_head_and_replace(store: Backend) -> None:
    store.put("a/b/one.bin", b"first")
    assert store.get("a/b/one.bin") == b"first"
    info = store.head("a/b/one.bin")
    assert (info.key, info.bytes) == ("a/b/one.bin", 5)
    assert info.modified > 1e9
    store.put("a/b/one.bin", memoryview(b"second, longer"))
    assert store.get("a/b/one.bin") == b"second, longer"
    assert store.exists("a/b/one.bin")
    assert not store.exists("a/b/two.bin")
    assert not store.exists("a/b")


def test_a_buffer_may_change_after_it_was_put(store: Backend) -> None:
    buffer = bytearray(b"as it was put")
    store.put("kept", memoryview(buffer))
    buffer[:2] = b"XX"
    assert store.get("kept") == b"as it was put"


def test_empty_object(store: Backend) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").bytes == 0
    store.read_into("empty", 0, memoryview(bytearray(0)))


def test_read_into_any_buffer_and_offset(store: Backend) -> None:
    data = bytes(range(256)) * 40
    store.put("x", data)
    buffer = bytearray(100)
    store.read_into("x", 77, memoryview(buffer)[10:60])
    assert buffer[10:60] == data[77:127]
    assert buffer[:10] == bytes(10)
    assert buffer[60:] == bytes(40)
    import numpy as np

    words = np.zeros(16, dtype=np.uint32)
    store.read_into("x", 256, words.data)
    assert words.tobytes() == data[256:320]

    parts = [bytearray(3), bytearray(0), bytearray(5000), bytearray(1)]
    store.read_into("x", 9, *(memoryview(part) for part in parts), words.data)
    assert b"".join(parts) + words.tobytes() == data[9 : 9 + 5004 + 64]
    with pytest.raises(CorruptData, match="x"):
        store.read_into("x", len(data) - 2, memoryview(bytearray(1)), memoryview(bytearray(2)))

    assert store.read("x", 77, 5000) == data[77:5077]
    with pytest.raises(CorruptData, match="x"):
        store.read("x", len(data) - 2, 3)


def test_advice_changes_nothing_and_never_fails(store: Backend) -> None:
    store.put("x", b"0123456789")
    store.advise("x", 2, 5)
    store.advise("x", 100, 5)
    store.advise("no/such", 0, 1)
    assert store.get("x") == b"0123456789"


@pytest.mark.parametrize("start", [0, 5, 9, 10, 500])
def test_truncated_object_is_corrupt_data(store: Backend, start: int) -> None:
    store.put("short", b"0123456789")
    with pytest.raises(CorruptData, match="short"):
        store.read_into("short", start, memoryview(bytearray(11)))


def test_the_remedy_names_the_verb_that_checks_the_object(store: Backend) -> None:
    for key, verb in (
        (
            "runs/demo/checkpoints/0000000002-00001/manifest.arrow",
            "`fmscale checkpoint verify STORE#RUN@STEP`",
        ),
        ("datasets/docs/log/000000000000.json", "`fmscale dataset verify`"),
    ):
        with pytest.raises(ObjectNotFound) as gone:
            store.get(key)
        assert verb in gone.value.remedy
        store.put(key, b"12345")
        with pytest.raises(CorruptData) as short:
            store.read_into(key, 3, memoryview(bytearray(8)))
        assert verb in short.value.remedy
        assert ("retire" in short.value.remedy) == key.startswith("datasets/")


def test_missing_object(store: Backend) -> None:
    for ask in (
        lambda: store.get("no/such"),
        lambda: store.head("no/such"),
        lambda: store.read_into("no/such", 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(ObjectNotFound, match="no/such"):
            ask()
    store.delete("no/such")


def test_delete(store: Backend) -> None:
    store.put("a/x", b"1")
    store.delete("a/x")
    assert not store.exists("a/x")
    store.delete("a/x")
    store.put("top", b"")
    store.put("b/c/d/x", b"")
    store.delete("b/c/d/x")
    assert [one.key for one in store.list_objects()] == ["top"]


def test_put_if_absent_twice(store: Backend) -> None:
    assert store.put_if_absent("log/0", b"mine") is True
    assert store.put_if_absent("log/0", b"theirs") is False
    assert store.get("log/0") == b"mine"


def test_list_is_by_folder_in_key_order(store: Backend) -> None:
    keys = ["a", "b-2/x", "b/1", "b/10", "b/2/deep/er", "b.txt", "bb/1"]
    for key in keys:
        store.put(key, key.encode())
    assert [one.key for one in store.list_objects()] == sorted(keys)
    assert [(one.key, one.bytes) for one in store.list_objects("b")] == [
        ("b/1", 3),
        ("b/10", 4),
        ("b/2/deep/er", 11),
    ]
    assert [one.key for one in store.list_objects("b/")] == ["b/1", "b/10", "b/2/deep/er"]
    assert store.list_names() == ["a", "b", "b-2", "b.txt", "bb"]
    assert store.list_names("b") == ["1", "10", "2"]
    assert list(store.list_objects("nothing")) == []
    assert store.list_names("nothing") == []
    assert list(store.list_objects("a")) == []


def test_odd_names(store: Backend) -> None:
    for name in ODD_NAMES:
        store.put(f"dir {name}/{name}", name.encode())
    assert sorted(one.key for one in store.list_objects()) == sorted(f"dir {n}/{n}" for n in ODD_NAMES)
    assert store.list_names() == sorted(f"dir {n}" for n in ODD_NAMES)
    for name in ODD_NAMES:
        assert store.get(f"dir {name}/{name}") == name.encode()
        assert store.put_if_absent(f"dir {name}/{name}", b"") is False


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/abs",
        "../up",
        "a/../../b",
        "a//b",
        "a/",
        ".",
        "a/./b",
        "nul\0",
        "line\n",
        "back\\slash",
        "x" * 256,
    ],
)
def test_bad_keys_are_refused_everywhere(store: Backend, key: str) -> None:
    for use in (
        lambda: store.get(key),
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.local_path(key),
        lambda: store.read_into(key, 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(StoreError, match="a key must be") as caught:
            use()
        assert not isinstance(caught.value, ObjectNotFound)


def test_put_file_small_and_multipart(store: Backend, tmp_path: Path) -> None:
    for name, size in (("small", 1000), ("large", PIECE_BYTES * 2 + 12345)):
        path = tmp_path / name
        data = bytes(range(251)) * (size // 251 + 1)
        path.write_bytes(data[:size])
        store.put_file(f"files/{name}", path)
        assert store.head(f"files/{name}").bytes == size
        assert store.get(f"files/{name}") == data[:size]


def test_put_large_buffer(store: Backend) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 256 + 3)
    store.put("large", memoryview(data))
    assert store.get("large") == data
    assert store.head("large").bytes == len(data)


def test_read_only_store_reads_and_refuses_to_write(store: Backend, store_url: str, tmp_path: Path) -> None:
    store.put("x", b"1")
    mark = "&" if "?" in store_url else "?"
    url = store_url if "://" in store_url else f"file://{store_url}"
    for closed in (open_store(store_url, read_only=True), open_store(f"{url}{mark}read_only=true")):
        assert closed.get("x") == b"1"
        (tmp_path / "f").write_bytes(b"")
        writes: tuple[Callable[[], object], ...] = (
            partial(closed.put, "y", b""),
            partial(closed.put_if_absent, "y", b""),
            partial(closed.put_file, "y", tmp_path / "f"),
            partial(closed.delete, "x"),
        )
        for write in writes:
            with pytest.raises(AccessDenied, match="reading only"):
                write()
        # No right to write would mend these.
        for bad in (
            partial(closed.put, "a//b", b""),
            partial(closed.put_if_absent, "", b""),
            partial(closed.delete, ".."),
        ):
            with pytest.raises(StoreError, match="a key must be"):
                bad()
    assert [one.key for one in store.list_objects()] == ["x"]


def test_requests_and_bytes_are_counted_by_kind(store: Backend) -> None:
    store.put("x", b"12345")
    store.put_if_absent("y", b"123")
    store.put_if_absent("y", b"123")
    store.get("x")
    store.read_into("x", 1, memoryview(bytearray(3)))
    store.head("x")
    store.list_names()
    store.delete("y")
    count, size = store.requests.count, store.requests.bytes
    assert {k: count[k] for k in ("put", "put_if_absent", "get", "get_range", "head", "list", "delete")} == {
        "put": 1,
        "put_if_absent": 2,
        "get": 1,
        "get_range": 1,
        "head": 1,
        "list": 1,
        "delete": 1,
    }
    assert (size["put"], size["get"], size["get_range"]) == (5, 5, 3)


def test_two_openings_see_the_same_objects(store: Backend, store_url: str) -> None:
    store.put("x", b"seen")
    other = open_store(store_url)
    assert other.get("x") == b"seen"
    assert other.put_if_absent("x", b"not") is False


def test_many_threads_on_one_backend(store: Backend) -> None:
    data = {f"k/{i}": bytes([i]) * (1000 + i) for i in range(48)}
    start = threading.Barrier(12)

    def work(thread: int) -> None:
        start.wait()
        for i, (key, value) in enumerate(data.items()):
            if i % 12 == thread:
                store.put(key, value)
                buffer = bytearray(len(value))
                store.read_into(key, 0, memoryview(buffer))
                assert bytes(buffer) == value

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert {one.key: one.bytes for one in store.list_objects()} == {k: len(v) for k, v in data.items()}
    assert store.requests.count["put"] == 48


FORKED = """
import os, sys
from fmscale.errors import StoreError
from fmscale.store.open import open_store

def in_child(use):
    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            print(use(), flush=True)
        except StoreError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)

url = sys.argv[1]
opened = open_store(url)
in_child(lambda: opened.put("x", b"first"))
print(opened.get("x"))
in_child(lambda: opened.get("x"))
in_child(lambda: open_store(url).list_names())
opened.put("x", b"second")
print(opened.get("x"))
"""


def test_a_forked_child_is_refused_by_name_and_harms_nobody(s3_url: str) -> None:
    """Without the refusal the child waits for ever, and its sockets end the parent by a segmentation fault."""
    done = subprocess.run([sys.executable, "-c", FORKED, s3_url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    none, first, old, new, second = done.stdout.splitlines()
    assert (none, first, second) == ("None", "b'first'", "b'second'")
    for line, request in ((old, "get of x"), (new, "list of the root")):
        assert line.startswith("a store that is no folder cannot be used in a process that was forked")
        assert request in line
        assert "forkserver" in line


def test_a_listing_with_a_key_that_the_client_refuses_says_so(s3: S3Server) -> None:
    bucket = Bucket(s3)
    bucket.put("folder/a\tb.txt", b"")
    with pytest.raises(StoreError, match="client cannot take") as refused:
        list(open_store(s3.url(bucket.name)).list_objects())
    assert r"folder/a\tb.txt" in str(refused.value.found)
    assert "Rename" in refused.value.remedy
