"""Sets of object names, where a name that ends in a slash stands for everything below it."""

from collections.abc import Iterable, Iterator


class KeySet:
    """Keys and folders; asks whether two names could mean the same stored object."""

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
    """The folders around a name: a/b/c has a/ and a/b/, and so has a/b/c/."""
    end = name.find("/")
    while 0 <= end < len(name) - 1:
        yield name[: end + 1]
        end = name.find("/", end + 1)
