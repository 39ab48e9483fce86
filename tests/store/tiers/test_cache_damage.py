"""Files of the node cache that are damaged before they are opened, or under their users: misses, and whole again."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmscale.store.tiers.cache import NodeCache
from fmscale.store.tiers.cache_file import CacheFile
from tests.helpers.cache_user import CHUNK, read, used_bytes
from tests.store.tiers.test_cache import ROOMY, files, make


def test_a_half_made_file_is_made_again(tmp_path: Path) -> None:
    cache, source = NodeCache(tmp_path, ROOMY), make()
    read(cache, source, 0, 4)
    (path,) = files(tmp_path)
    size, whole = path.stat().st_size, path.read_bytes()
    damages = [b"", bytes(size), whole[:-CHUNK], whole[:8] + bytes(size - 8), whole[:8] + b"\xff" * 24 + whole[32:]]
    for damage in damages:
        os.close(cache._membership)  # so that the next user puts the cache in order
        path.write_bytes(damage)
        cache = fresh = NodeCache(tmp_path, ROOMY)
        assert fresh.requests.count.get("error", 0) == 0
        read(fresh, source, 0, 4)
        assert CacheFile(str(path)).states()[:4] == b"\1\1\1\1"


@pytest.mark.parametrize("usage", [b"", b"\xff" * 16, b"\xff" * 8 + bytes(8), bytes(3)])
def test_a_damaged_count_is_renewed(tmp_path: Path, usage: bytes) -> None:
    source, before = make(), NodeCache(tmp_path, ROOMY)
    read(before, source, 0, 4)
    os.close(before._membership)
    (tmp_path / "usage").write_bytes(usage)
    (tmp_path / "aa/folder").mkdir()
    cache = NodeCache(tmp_path, 8 * CHUNK)
    assert used_bytes(cache) == 4 * CHUNK
    (tmp_path / "usage").write_bytes(usage)
    read(cache, source, 4, 8)
    assert used_bytes(cache) <= 8 * CHUNK
    assert cache.requests.count.get("error", 0) == 0


def cut(path: Path) -> None:
    os.truncate(path, 0)


def cut_and_grown(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(64))


@pytest.mark.parametrize("damage", [cut, cut_and_grown, half, zeroed_header])
def test_a_file_that_is_damaged_under_its_users(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Every read has the right bytes, and after some misses all users share one whole file again."""
    source = make(chunks=16)
    users = [NodeCache(tmp_path, ROOMY) for _ in range(2)]
    for cache in users:
        read(cache, source, 0, 16)
    (path,) = files(tmp_path)
    damage(path)
    for _ in range(3):
        for cache in users:
            for first in range(0, 16, 4):
                read(cache, source, first, 4)
    source.calls.clear()
    for cache in (*users, NodeCache(tmp_path, ROOMY)):
        read(cache, source, 0, 16)
        assert source.calls == []
    assert len(files(tmp_path)) == 1
    assert used_bytes(NodeCache(tmp_path, ROOMY)) >= 16 * CHUNK


def test_a_file_that_was_made_anew_is_found_by_those_who_have_the_old_one_open(tmp_path: Path) -> None:
    source = make(chunks=16)
    old = NodeCache(tmp_path, ROOMY)
    read(old, source, 0, 8)
    (path,) = files(tmp_path)
    path.unlink()
    read(NodeCache(tmp_path, ROOMY), source, 0, 16)
    source.calls.clear()
    for first in (8, 12, 8):
        read(old, source, first, 4)
    assert source.calls == [(8, 4)], "one miss shows that the old file is gone"


@pytest.mark.parametrize("usage", [b"", bytes(3)])
def test_a_count_that_is_cut_under_its_users_lets_nothing_beyond_the_limit(tmp_path: Path, usage: bytes) -> None:
    source, cache = make(chunks=16), NodeCache(tmp_path, 8 * CHUNK)
    read(cache, source, 0, 8, next_use=20)
    (tmp_path / "usage").write_bytes(usage)
    read(cache, source, 8, 4, next_use=10)
    (path,) = files(tmp_path)
    assert 4 <= 16 - CacheFile(str(path)).states().count(0) <= 8
    assert cache.requests.count["evict"] > 0


def test_a_file_that_is_damaged_during_an_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, cache = make("a"), make("b"), NodeCache(tmp_path, 8 * CHUNK)
    read(cache, first, 0, 8, next_use=20)
    (path,) = files(tmp_path)
    every = NodeCache._every_file

    def damaged(self: NodeCache) -> Iterator[CacheFile]:
        yield from every(self)
        zeroed_header(path)

    with monkeypatch.context() as patch:
        patch.setattr(NodeCache, "_every_file", damaged)
        read(cache, second, 0, 4, next_use=10)
    assert cache.requests.count["error"] == 1
    read(cache, second, 0, 4, next_use=10)
    second.calls.clear()
    read(cache, second, 0, 4, next_use=10)
    assert second.calls == []
