"""Traits of a directory: atomic and durable writes, full and read-only disks, killed writers."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmscale.errors import AccessDenied, ObjectNotFound, StoreError, StoreFull
from fmscale.store.backends import open_files
from fmscale.store.backends.local import STALE_SECONDS, LocalBackend
from fmscale.store.keys import TEMPORARY_PREFIX
from tests.helpers.disks import mounted

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with mounted(tmp_path / "small", "2m") as path:
        yield path


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with one object `there`, mounted read-only."""
    with mounted(tmp_path / "closed", "2m") as path:
        (path / "there").write_bytes(b"1")
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        yield path


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{TEMPORARY_PREFIX}*")]


@ROOT
def test_full_disk_says_so_and_leaves_nothing_behind(small_disk: Path, tmp_path: Path) -> None:
    store = LocalBackend(small_disk)
    store.put("small", b"kept")
    big = bytes(3 << 20)
    (tmp_path / "big").write_bytes(big)
    for write in (
        lambda: store.put("big", big),
        lambda: store.put_if_absent("big", big),
        lambda: store.put_file("big", tmp_path / "big"),
        lambda: store.put("small", big),
    ):
        with pytest.raises(StoreFull, match="full") as caught:
            write()
        assert "Free space" in caught.value.remedy
        assert [one.key for one in store.list_objects()] == ["small"]
        assert temporaries(small_disk) == []
    assert store.get("small") == b"kept"
    assert store.put_if_absent("fits", b"1") is True


@ROOT
def test_read_only_disk(read_only_disk: Path) -> None:
    store = LocalBackend(read_only_disk)
    assert store.get("there") == b"1"
    for write in (
        lambda: store.put("x", b""),
        lambda: store.put_if_absent("x", b""),
        lambda: store.delete("there"),
    ):
        with pytest.raises(AccessDenied, match="Read-only file system") as caught:
            write()
        assert "read_only" in caught.value.remedy


def test_unwritable_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBackend(root)
    if os.geteuid() == 0:
        # Permissions do not stop root; the test injects the kernel's error for other users.
        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "fsync", refused)
    else:
        root.chmod(0o500)
    with pytest.raises(AccessDenied, match="Permission denied"):
        store.put("x", b"")
    monkeypatch.undo()
    assert temporaries(root) == []


def test_links_are_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = LocalBackend(root)
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for key in ("folder/secret", "file"):
        for use in (
            lambda k=key: store.get(k),
            lambda k=key: store.read_into(k, 0, memoryview(bytearray(6))),
        ):
            with pytest.raises(StoreError, match="symbolic link"):
                use()
    with pytest.raises(StoreError, match="symbolic link"):
        store.put("folder/new", b"")
    with pytest.raises(StoreError, match="symbolic link"):
        list(store.list_objects("folder"))
    with pytest.raises(ObjectNotFound):
        store.head("file")
    assert list(store.list_objects()) == []
    store.put("file", b"replaced")
    assert (outside / "secret").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_store_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = LocalBackend(tmp_path / "link")
    store.put("a/b", b"1")
    assert (tmp_path / "real/a/b").read_bytes() == b"1"


def test_name_is_a_folder_or_an_object(root: Path) -> None:
    store = LocalBackend(root)
    store.put("a", b"1")
    store.put("d/x", b"1")
    for write in (
        lambda: store.put("a/b", b""),
        lambda: store.put("d", b""),
        lambda: store.put_if_absent("a/b/c", b""),
    ):
        with pytest.raises(StoreError, match="in the way") as caught:
            write()
        assert not isinstance(caught.value, ObjectNotFound)
    with pytest.raises(ObjectNotFound):
        store.get("a/b")
    assert store.put_if_absent("d", b"") is False
    assert temporaries(root) == []


@pytest.fixture
def events(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of fsync, link and rename from now on, with their places below the store's folder."""
    root.mkdir(exist_ok=True)
    events: list[str] = []

    def recorded(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
            events.append(f"{name} {'data' if TEMPORARY_PREFIX in target else os.path.relpath(target, root)}")
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "rename"):
        recorded(name)
    return events


def test_data_and_names_are_synced_before_a_write_returns(root: Path, events: list[str]) -> None:
    store = LocalBackend(root)
    assert events == []
    store.put("a/b/x", b"1")
    # Each new folder is synced into its parent first: a synced file in a lost folder is lost.
    assert events == ["fsync ..", "fsync .", "fsync a", "fsync data", "rename a/b/x", "fsync a/b"]
    events.clear()
    assert store.put_if_absent("a/b/y", b"1") is True
    assert events == ["fsync data", "link a/b/y", "fsync a/b"]
    events.clear()
    # The loser may rely on the object that it sees, which must survive a crash of the winner's machine.
    assert store.put_if_absent("a/b/y", b"2") is False
    assert events == ["fsync a/b"]


def test_a_new_store_is_durable_in_its_parent(root: Path, events: list[str]) -> None:
    store = LocalBackend(root / "new/store")
    assert events == ["fsync ..", "fsync .", "fsync new"]
    store.put("x", b"1")
    assert events[3:] == ["fsync data", "rename new/store/x", "fsync new/store"]


def test_a_folder_of_another_process_is_not_taken_as_durable(root: Path, events: list[str]) -> None:
    (root / "a/b").mkdir(parents=True)
    store = LocalBackend(root)
    store.put("a/b/x", b"1")
    assert events == ["fsync a", "fsync data", "rename a/b/x", "fsync a/b"]
    store.delete("a/b/x")
    (root / "a/b").mkdir(parents=True)
    events.clear()
    store.put("a/b/x", b"1")
    assert events[0] == "fsync a"
    store.put("a/b/y", b"1")
    assert events[4:] == ["fsync data", "rename a/b/y", "fsync a/b"]


def test_repeated_link_of_a_network_file_system_is_ours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def answer_lost(source: str, target: str, **options: bool) -> None:
        real(source, target, **options)
        raise FileExistsError(errno.EEXIST, "the repeated request found the first one's link")

    monkeypatch.setattr(os, "link", answer_lost)
    assert LocalBackend(root).put_if_absent("k", b"1") is True


def test_file_system_without_hard_links_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: str, **__: bool) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(StoreError, match="hard links") as caught:
        LocalBackend(root).put_if_absent("k", b"1")
    assert "ext4" in caught.value.remedy
    assert temporaries(root) == []


KILLED = """
    import os, sys
    from pathlib import Path
    from fmscale.store.backends.local import LocalBackend
    store = LocalBackend(Path(sys.argv[1]))
    real = os.fsync
    def stop(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return real(descriptor)
        print("writing", flush=True)
        sys.stdin.read()
    os.fsync = stop
    getattr(store, sys.argv[2])("d/k", b"half" * 100000)
"""


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_killed_writer_leaves_nothing_visible_and_is_swept_later(root: Path, method: str) -> None:
    store = LocalBackend(root)
    store.put("d/old", b"1")
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(root), method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    (left,) = temporaries(root)
    assert (root / "d" / left).stat().st_size == 400_000
    assert [one.key for one in store.list_objects()] == ["d/old"]
    assert store.list_names("d") == ["old"]
    assert not store.exists("d/k")
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(root / "d" / left, (long_ago, long_ago))
    LocalBackend(root).put("d/new", b"1")
    assert temporaries(root) == [left], "its writer lives and holds the lock, however old the file is"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    LocalBackend(root).put("d/new", b"1")
    assert temporaries(root) == []
    assert [one.key for one in store.list_objects()] == ["d/new", "d/old"]


def test_young_temporary_file_is_left_alone(root: Path) -> None:
    store = LocalBackend(root)
    (root / f"{TEMPORARY_PREFIX}someone").write_bytes(b"just being created, not locked yet")
    store.put("x", b"1")
    assert temporaries(root) == [f"{TEMPORARY_PREFIX}someone"]


def test_reader_of_a_replaced_object_sees_the_old_or_the_new_one(root: Path) -> None:
    store = LocalBackend(root)
    store.put("x", b"a" * 100_000)
    reader = (root / "x").open("rb")
    store.put("x", b"b" * 50_000)
    with reader:
        assert reader.read() == b"a" * 100_000
    assert store.get("x") == b"b" * 50_000


def test_reads_of_one_object_open_it_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalBackend(root)
    store.put("x", b"0123456789")
    opened: list[str] = []
    real = os.open

    def counted(path: str, *arguments: int) -> int:
        opened.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", counted)
    for start in range(5):
        store.read_into("x", start, memoryview(bytearray(2)))
    assert len(opened) == 1


def test_kept_file_is_given_up_when_its_object_is_replaced_or_deleted(root: Path) -> None:
    store, other = LocalBackend(root), LocalBackend(root)
    store.put("x", b"old")
    part = bytearray(3)
    store.read_into("x", 0, memoryview(part))
    assert part == b"old"
    other.put("x", b"new")
    store.read_into("x", 0, memoryview(part))
    assert part == b"new"
    other.delete("x")
    with pytest.raises(ObjectNotFound):
        store.read_into("x", 0, memoryview(part))


def test_what_is_deleted_is_not_kept_open_for_its_space_is_wanted(root: Path) -> None:
    store = LocalBackend(root)
    store.put("x", b"old")
    store.read_into("x", 0, memoryview(bytearray(3)))
    store.delete("x")
    links = [os.readlink(f"/proc/self/fd/{one.name}") for one in os.scandir("/proc/self/fd") if one.is_symlink()]
    assert not [link for link in links if link.startswith(str(root))]


def test_open_files_are_few_and_not_closed_under_a_reader(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "LIMIT", 4)
    store = LocalBackend(root)
    for n in range(40):
        store.put(f"d/{n}", bytes([n]) * 1000)
    before = len(os.listdir("/proc/self/fd"))

    def read(turn: int) -> None:
        n = turn * 7 % 40
        buffer = bytearray(1000)
        store.read_into(f"d/{n}", 0, memoryview(buffer))
        assert buffer == bytes([n]) * 1000

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(2000)))
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_writers_and_deleters_of_one_folder_do_not_disturb_each_other(root: Path) -> None:
    store = LocalBackend(root)

    def work(thread: int) -> None:
        for turn in range(100):
            store.put(f"a/b/c/{thread}", bytes([turn]))
            store.delete(f"a/b/c/{thread}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(root.iterdir()) == [], "folders without objects do not exist"


def test_local_path(root: Path) -> None:
    store = LocalBackend(root)
    store.put("a/b", b"1")
    path = store.local_path("a/b")
    assert path is not None
    assert path.read_bytes() == b"1"


def test_missing_directory_is_created_only_for_writing(root: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        LocalBackend(root, read_only=True)
    assert not root.exists()
    LocalBackend(root)
    assert root.is_dir()


def test_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        LocalBackend(tmp_path / "file")
