"""A case of the check: odd input, the plain reader of its documents, and the reasons for which the rest is left out."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ANY = -1
"""A count of at least one, where the number says nothing: a file of UTF-16 has as many bad lines as it has newlines."""

Reader = Callable[[Path], list[Any]]
"""The documents of a file in order, or its records."""

Print = tuple[str, str, int, str]
"""A document to compare: its source name, the digest of its text, its length and its beginning."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Odd input below a folder of its own."""

    kind: str
    """Kind of oddness."""
    name: str
    """Name within its kind."""
    make: Callable[[Path], object] = lambda folder: None
    """Writes the input into its folder, which exists."""
    objects: Mapping[str, bytes] = field(default_factory=dict)
    """Objects of a bucket, by the key below the case's prefix; the input, instead of files."""
    documents: Mapping[str, Reader] = field(default_factory=dict)
    """Plain reader of each file that holds documents, by the path below the folder."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Count of what is left out, by reason. The reason `*` stands for any reasons."""
    guessed: str = ""
    """Format that the result must name as a guess; empty if none is asked for."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the job. Cases with the same arguments share a job."""
    paths: tuple[str, ...] = ()
    """Paths below the folder that the job gets instead of the folder. Such a case has a job of its own."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Change of a file during the job; see `job.Change`. Such a case has a job of its own."""
    ends: str = ""
    """Words of the error with which the job must end; empty for a job that must not end."""
    alone: bool = False
    """True for a case with a process of its own, whose memory is measured."""
    largest: int = 0
    """Bytes of the largest document, where it is left out."""
    original: tuple[str, ...] | None = None
    """For damage that may cost any documents of a file, provided that this is counted: the documents before it."""

    @property
    def id(self) -> str:
        """Name among all cases, and of its folder."""
        return f"{self.kind}/{self.name}"

    @property
    def group(self) -> str:
        """Cases of the same group share a job."""
        own = self.paths or self.change or self.ends or self.alone
        return self.id if own else f"{bool(self.objects)} {sorted(self.options.items())}"


def file(
    kind: str, name: str, path: str, data: bytes | Callable[[], bytes], reader: Reader | None = None, **left_out: int
) -> Case:
    """A case of one file. `reader` is None for a file without documents."""
    return files(kind, name, {path: data}, {path: reader} if reader else {}, **left_out)


def files(
    kind: str,
    name: str,
    content: Mapping[str, bytes | Callable[[], bytes]],
    documents: Mapping[str, Reader],
    **left_out: int,
) -> Case:
    """A case of several files."""

    def make(folder: Path) -> None:
        for path, data in content.items():
            put(folder / path, data() if callable(data) else data)

    return Case(
        kind=kind,
        name=name,
        make=make,
        documents=documents,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def put(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def anything(case: Case) -> Case:
    """The case with any reasons for what is left out."""
    return replace(case, left_out={"*": ANY})


def printed(source: str, value: str | bytes | dict[str, Any]) -> Print:
    """A text as it is compared, or a record, without the columns that it lacks."""
    if isinstance(value, dict):
        value = json.dumps({name: value[name] for name in sorted(value) if value[name] is not None}, default=repr)
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return source, hashlib.sha256(data).hexdigest(), len(data), data[:40].decode("utf-8", "replace")
