"""Cases of files that change during the job: it ends, says so, and commits nothing."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.odd.case import Case, files
from benchmarks.odd.lines import many
from benchmarks.odd.streams import gz
from benchmarks.odd.tables import parquet, texts


def changing(name: str, how: str, at: int, path: str, data: Callable[[], bytes]) -> Case:
    """A case of a file that changes before its first byte is read (`at` 0), or behind its first documents (1)."""
    case = files("changing", f"{name}, {'while' if at else 'before'} it is read", {path: data}, {})
    return replace(case, change={"path": path, "how": how, "at": at}, ends="changed while it was ingested")


WAYS = ("append", "truncate", "replace", "overwrite", "remove", "touch")


def table() -> bytes:
    """A Parquet file of several requests to its reader."""
    return parquet(texts(values=[f"row {number} " * 20 for number in range(20_000)]), row_group_size=1000)


CHANGING = [
    *(changing(f"lines: {how}", how, at, "b.jsonl", lambda: many(20_000)) for how in WAYS for at in (0, 1)),
    *(changing(f"gzip: {how}", how, at, "b.jsonl.gz", lambda: gz(many(20_000))) for how in WAYS[:3] for at in (0, 1)),
    *(changing(f"Parquet: {how}", how, at, "b.parquet", table) for how in WAYS[:3] for at in (0, 1)),
]
