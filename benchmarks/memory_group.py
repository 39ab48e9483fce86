"""A memory cgroup for a benchmark: page cache counts in it, so that data can be larger than the page cache.

The group lies below this process's own group, so it can only lower limits. It is a cgroup v1 or v2; without permission
for both, `memory_group` gives the reason.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A group with a limit."""

    folder: Path
    """Folder in the cgroup file system."""
    limit_bytes: int
    """Bytes that its processes and their page cache may use."""

    def inside(self, command: list[str]) -> list[str]:
        """The command line that runs `command` in the group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def peak_bytes(self) -> int:
        """The peak of its use so far. (memory.failcnt stays 0 on Linux 6.18, however often pages are reclaimed.)"""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        raise RuntimeError(f"the memory cgroup {self.folder} does not tell its peak")


@contextlib.contextmanager
def memory_group(
    limit_bytes: int, *, mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[MemoryGroup]:
    """A group with this limit; removed at the end of the block, when its processes must have ended.

    Raises RuntimeError with the reason if this machine does not allow a group.
    """
    parent, version = _own_group(mounts.read_text(), own.read_text())
    folder = parent / f"fmscale-bench-{os.getpid()}"
    names = {1: "memory.limit_in_bytes", 2: "memory.max"}
    swap = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}
    try:
        if version == 2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
    except OSError as error:
        raise RuntimeError(f"no memory cgroup can be made in {parent}: {error.strerror}") from error
    try:
        (folder / names[version]).write_text(str(limit_bytes))
        with contextlib.suppress(FileNotFoundError):  # without swap there is nothing to forbid
            (folder / swap[version]).write_text(str(limit_bytes if version == 1 else 0))
        got = int((folder / names[version]).read_text())
        if abs(got - limit_bytes) > os.sysconf("SC_PAGE_SIZE"):
            raise RuntimeError(f"the memory cgroup {folder} took the limit {got} instead of {limit_bytes}")
        yield MemoryGroup(folder=folder, limit_bytes=limit_bytes)
    except OSError as error:
        raise RuntimeError(f"the memory cgroup {folder} takes no limit: {error.strerror}") from error
    finally:
        folder.rmdir()


def _own_group(mounts: str, own: str) -> tuple[Path, int]:
    """(folder, version) of this process's memory cgroup. Raises RuntimeError."""
    places: dict[int, tuple[str, str]] = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup" and "memory" in options.split()[-1].split(","):
            places[1] = (root, point)
        elif kind == "cgroup2":
            places[2] = (root, point)
    groups = [line.split(":", 2) for line in own.splitlines()]
    paths = {2 if number == "0" else 1: path for number, names, path in groups if number == "0" or "memory" in names}
    for version in (1, 2):
        if version in places and version in paths:
            root, point = places[version]
            inside = paths[version] if root == "/" else paths[version].removeprefix(root)
            folder = Path(point) / inside.strip("/")
            controllers = folder / "cgroup.controllers"
            if version == 1 or (controllers.exists() and "memory" in controllers.read_text().split()):
                return folder, version
    raise RuntimeError("no memory cgroup is mounted here")
