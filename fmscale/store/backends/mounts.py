"""Type of the file system under a path, from /proc/self/mountinfo (proc(5))."""

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


def file_system_type(path: Path) -> str:
    """Type of the file system that holds `path`, such as `ext4`; `posix` where /proc does not say."""
    if not MOUNTS.exists():
        return "posix"
    best, kind = "", "posix"
    resolved = str(path.resolve())
    for line in MOUNTS.read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ", 1)[0]
    return kind
