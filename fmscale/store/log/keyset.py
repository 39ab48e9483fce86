"""Sets of object names; a name with a final slash stands for all objects below it."""

from collections.abc import Iterable, Iterator


class KeySet:
    """Keys and folders, with a test if a name could mean an object of the set."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._parents: set[str] = set()
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """Add a key, or a folder if the name ends in a slash."""
        self._names.add(name)
        self._parents.update(_folders(name))

    def touches(self, name: str) -> bool:
        """True if `name` is in the set, lies in a folder of the set, or is a folder around a member."""
        return name in self._names or name in self._parents or any(folder in self._names for folder in _folders(name))


def _folders(name: str) -> Iterator[str]:
    """The folders around a name: a/ and a/b/ for a/b/c, and also for a/b/c/."""
    end = name.find("/")
    while 0 <= end < len(name) - 1:
        yield name[: end + 1]
        end = name.find("/", end + 1)
