"""The probe accepts stores that create exactly once and refuses all others."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from fmscale.errors import AccessDenied, ConfigError, FormatError, ObjectNotFound, StoreError
from fmscale.store.backends.fsspec import FsspecBackend
from fmscale.store.backends.protocol import Backend
from fmscale.store.doctor import probe as probing
from fmscale.store.doctor.probe import RECORD_KEY, implementation, probe, require_writable
from fmscale.store.open import open_store
from tests.helpers.faulty_backend import FaultyBackend


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_known", {})


class ExclusiveFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's local files with an added creation that fails if the name exists."""

    protocol = "exclusive"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with open(self._strip_protocol(path), "xb" if mode == "create" else "wb") as file:
            file.write(value)


@pytest.fixture
def exclusive_url(tmp_path: Path) -> str:
    fsspec.register_implementation("exclusive", ExclusiveFileSystem, clobber=True)
    (tmp_path / "exclusive").mkdir()
    return f"exclusive://{tmp_path / 'exclusive'}"


@pytest.fixture
def racy_url(tmp_path: Path) -> str:
    """fsspec's own local files: `create` looks for the name and then writes."""
    (tmp_path / "racy").mkdir()
    return f"local://{tmp_path / 'racy'}"


@pytest.mark.parametrize("store_url", ["local", "memory"], indirect=True)
def test_good_store_passes_and_is_recorded_once(store: Backend, store_url: str) -> None:
    found = probe(store)
    assert found.writable, found
    assert found.list_after_write
    assert found.problem == ""
    assert [one.key for one in store.list_objects()] == [RECORD_KEY], "the probe cleans up"
    probing._known.clear()
    again = open_store(store_url)
    assert probe(again) == found
    assert again.requests.count == {"get": 1}, "a recorded store is not probed again"
    require_writable(again)
    assert probe(again, again=True).time > found.time


@pytest.mark.slow
def test_real_s3_passes(s3_store: Backend) -> None:
    found = probe(s3_store)
    assert found.writable, found
    assert found.list_after_write
    assert found.implementation.startswith("s3:http://127.0.0.1:")
    assert json.loads(s3_store.get(RECORD_KEY))["probes"][found.implementation]["put_if_absent"] is True


def test_one_race_serves_all_stores_of_one_place(s3_url: str) -> None:
    name = implementation(open_store("memory://first-place"))
    first = probe(open_store("memory://first-place"))
    other = open_store("memory://first-place")
    other.delete(RECORD_KEY)
    assert probe(other) == first
    assert json.loads(other.get(RECORD_KEY))["probes"][name]


class _Broken(FaultyBackend):
    """Overwrites, and reports creation to every writer."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.inner.put(key, data)
        return True


class _Forgetful(FaultyBackend):
    """Reports one winner, but a later writer's bytes stay."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        created = self.inner.put_if_absent(key, data)
        if not created:
            self.inner.put(key, data)
        return created


class _Stale(FaultyBackend):
    """Returns the previous version to reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.old: dict[str, bytes] = {}

    def put(self, key: str, data: bytes | memoryview) -> None:
        if self.inner.exists(key):
            self.old[key] = self.inner.get(key)
        self.inner.put(key, data)

    def get(self, key: str) -> bytes:
        return self.old.get(key) or self.inner.get(key)


class _WholeObject(FaultyBackend):
    """Answers a range with the object's beginning."""

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        for buffer in buffers:
            buffer[:] = self.inner.get(key)[: len(buffer)]


class _Unsupported(FaultyBackend):
    """Has no conditional put."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise StoreError("the store refused the request", found="HTTP 501 NotImplemented")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (_Broken, "16 of 16 racing writers"),
        (_Forgetful, "does not hold the bytes"),
        (_Stale, "not what was written"),
        (_WholeObject, "a range does not hold"),
        (_Unsupported, "501"),
    ],
)
def test_bad_store_is_refused_with_its_reason(kind: type[FaultyBackend], problem: str) -> None:
    backend = kind(open_store(f"memory://{uuid.uuid4().hex}"))
    with pytest.raises(StoreError, match="cannot be written safely") as caught:
        require_writable(backend)
    assert problem in str(caught.value.found)
    assert "If-None-Match" in caught.value.remedy
    with pytest.raises(StoreError, match="cannot be written safely"):
        require_writable(open_store(backend.url))


def test_network_failure_is_not_recorded_as_a_property(memory_store: Backend) -> None:
    from fmscale.errors import StoreUnavailable
    from tests.helpers.faulty_backend import Fault

    faulty = FaultyBackend(memory_store)
    faulty.inject(Fault.UNAVAILABLE, "put_if_absent")
    faulty.inject(Fault.UNAVAILABLE, "get")  # by then another writer may have made the key, which would settle it
    with pytest.raises(StoreUnavailable):
        probe(faulty)
    assert not memory_store.exists(RECORD_KEY)


def test_read_only_store_cannot_be_probed_but_its_record_is_read(tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    open_store(url)
    with pytest.raises(AccessDenied):
        probe(open_store(url, read_only=True))
    found = probe(open_store(url))
    assert probe(open_store(url, read_only=True)) == found


def test_record_of_a_later_version_is_refused(memory_store: Backend) -> None:
    memory_store.put(RECORD_KEY, b'{"format_version": 99, "probes": {}}')
    with pytest.raises(FormatError, match="99"):
        probe(memory_store)
    memory_store.put(RECORD_KEY, b"not json")
    with pytest.raises(FormatError, match="not JSON"):
        probe(memory_store)


def test_record_with_unknown_fields_is_read(memory_store: Backend) -> None:
    found = probe(memory_store)
    record = json.loads(memory_store.get(RECORD_KEY))
    record["probes"][found.implementation]["later"] = 1
    memory_store.put(RECORD_KEY, json.dumps(record).encode())
    assert probe(memory_store) == found


def test_implementation_names_the_file_system(local_store: Backend) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    assert f" - {implementation(local_store).removeprefix('file:')} " in mounts


def test_foreign_store_is_read_only_until_probed(exclusive_url: str) -> None:
    store = open_store(exclusive_url)
    with pytest.raises(AccessDenied, match="until a probe") as caught:
        store.put("x", b"")
    assert "fmscale doctor" in caught.value.remedy
    require_writable(store)
    store.put("x", b"1")
    assert store.put_if_absent("x", b"2") is False
    unaware = open_store(exclusive_url)
    assert unaware.get("x") == b"1"
    with pytest.raises(AccessDenied):
        unaware.put("x", b"")
    require_writable(unaware)
    unaware.put("x", b"3")


def test_foreign_store_that_races_is_refused(racy_url: str) -> None:
    store = open_store(racy_url)
    with pytest.raises(StoreError, match="cannot be written safely") as caught:
        require_writable(store)
    assert "racing writers" in str(caught.value.found) or "bytes of the writer" in str(caught.value.found)
    with pytest.raises(AccessDenied):
        store.put("x", b"")


def test_foreign_store_keeps_the_rest_of_the_contract(exclusive_url: str, tmp_path: Path) -> None:
    store = open_store(exclusive_url)
    assert isinstance(store, FsspecBackend)
    require_writable(store)
    data = bytes(range(256)) * 10
    store.put("a/b/x", data)
    (tmp_path / "file").write_bytes(data)
    store.put_file("a/b/y", tmp_path / "file")
    buffer = bytearray(100)
    store.read_into("a/b/x", 7, memoryview(buffer))
    assert bytes(buffer) == data[7:107]
    assert store.get("a/b/y") == data
    assert [(one.key, one.bytes) for one in store.list_objects("a")] == [("a/b/x", 2560), ("a/b/y", 2560)]
    assert {"a", RECORD_KEY} <= set(store.list_names())
    assert store.list_names("nothing") == []
    assert list(store.list_objects("nothing")) == []
    assert store.head("a/b/x").bytes == 2560
    assert store.head("a/b/x").modified > 1e9
    store.delete("a/b/x")
    store.delete("a/b/x")
    assert not store.exists("a/b/x")
    for key in ("a/b/x", "a/b"):
        with pytest.raises(ObjectNotFound):
            store.head(key)
        with pytest.raises(ObjectNotFound):
            store.get(key)
    with pytest.raises(StoreError, match="ends before"):
        store.read_into("a/b/y", 2500, memoryview(buffer))
    with pytest.raises(StoreError, match="a key must be"):
        store.get("../x")


def test_zip_archive_is_a_store_to_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("d/x", b"0123456789")
    store = open_store(f"zip://::{tmp_path / 'a.zip'}")
    assert store.get("d/x") == b"0123456789"
    part = bytearray(4)
    store.read_into("d/x", 3, memoryview(part))
    assert part == b"3456"
    assert [one.key for one in store.list_objects()] == ["d/x"]


def test_protocol_whose_package_is_missing() -> None:
    with pytest.raises(ConfigError, match="no store can be opened"):
        open_store("abfss-nothing://x")


def test_probing_from_many_threads_races_once(memory_store: Backend) -> None:
    counted = FaultyBackend(memory_store)
    threads = [threading.Thread(target=probe, args=(counted,)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sum(call.method == "put_if_absent" for call in counted.calls) == 16 * 20


def test_a_record_that_is_too_deep_is_refused(memory_store: Backend) -> None:
    memory_store.put(RECORD_KEY, b"[" * 100_000)
    with pytest.raises(FormatError, match="own record is not JSON"):
        require_writable(memory_store)
