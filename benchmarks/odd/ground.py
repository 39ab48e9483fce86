"""The places of cases: a folder of this machine, or a prefix of a bucket."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from benchmarks.odd import plain
from benchmarks.odd.bucket import Bucket
from benchmarks.odd.case import Case, Print, printed, put


class Ground(Protocol):
    """Root of a job, with a folder for each case."""

    def make(self, case: Case) -> None:
        """Write the input of a case."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file."""

    def path(self, name: str) -> str:
        """The argument of `ingest` for a name below the root."""

    def documents(self, case: Case) -> Iterator[Print]:
        """The documents of a case by plain readers, in order."""

    def close(self) -> None:
        """Delete the input."""


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, case: Case) -> None:
        folder = self.root / case.id
        folder.mkdir(parents=True)
        case.make(folder)

    def put(self, name: str, data: bytes) -> None:
        put(self.root / name, data)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else str(self.root)

    def documents(self, case: Case) -> Iterator[Print]:
        for source in sorted(case.documents):
            for value in case.documents[source](self.root / case.id / source):
                yield printed(source, value)

    def close(self) -> None:
        shutil.rmtree(self.root)


class Prefix:
    """A prefix of a bucket."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix

    def make(self, case: Case) -> None:
        for key, data in case.objects.items():
            self.bucket.put(f"{self.prefix}/{case.id}/{key}", data)

    def put(self, name: str, data: bytes) -> None:
        self.bucket.put(f"{self.prefix}/{name}", data)

    def path(self, name: str) -> str:
        return self.bucket.server.url(self.bucket.name, f"{self.prefix}/{name}".removesuffix("/"))

    def documents(self, case: Case) -> Iterator[Print]:
        below = f"{self.prefix}/{case.id}/"
        for key in self.bucket.keys(below):
            source = key.removeprefix(below)
            if source in case.documents:
                for value in plain.loaded(case.documents[source], self.bucket.get(key)):
                    yield printed(source, value)

    def close(self) -> None:
        """Leave the objects to the end of the server."""
