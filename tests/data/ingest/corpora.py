"""Small corpora of every format, and the content of a store after an ingest, to compare two stores."""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.keys import TEMPORARY_PREFIX
from fmscale.store.segments.tokens import open_segment, read_document_table, read_tokens

MOMENT = 1_700_000_000
"""Modification time of every file: two copies of a corpus are the same inputs."""


def put(path: Path, data: bytes | str) -> Path:
    """Write a file with a fixed modification time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, (MOMENT, MOMENT))
    return path


def lines(texts: list[str], field: str = "text") -> bytes:
    """JSONL with the texts in a field, which may be a path with dots."""
    rows = []
    for text in texts:
        value: Any = text
        for name in reversed(field.split(".")):
            value = {name: value}
        rows.append(json.dumps(value, ensure_ascii=False))
    return "".join(f"{row}\n" for row in rows).encode()


def parquet(path: Path, texts: Sequence[str | None], rows: int = 4) -> Path:
    """A Parquet file with the column `text`, `rows` rows a group."""
    put(path, b"")
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows)
    os.utime(path, (MOMENT, MOMENT))
    return path


def arrow(path: Path, texts: list[str], rows: int = 4, *, stream: bool = False, **options: Any) -> Path:
    """An Arrow IPC file, or stream, with the column `text`, `rows` rows a batch."""
    table = pa.table({"number": list(range(len(texts))), "text": texts})
    put(path, b"")
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    os.utime(path, (MOMENT, MOMENT))
    return path


def sentences(name: str, count: int) -> list[str]:
    """Different texts of a few hundred characters."""
    return [f"{name} {i}: " + "the quick brown fox jumps over it's lazy dög\n" * (1 + i % 7) for i in range(count)]


def mixed(folder: Path, count: int = 40) -> Path:
    """A folder with files of every format, some of which are skipped."""
    for i, text in enumerate(sentences("page", count)):
        put(folder / f"docs/page-{i:03d}.md", text)
    put(folder / "code/main.py", "def main():\n    return 'ünïcode'\n" * 20)
    put(folder / "code/.git/config", "hidden")
    put(folder / "code/empty.py", "")
    put(folder / "code/latin.txt", "caf\xe9".encode("latin-1"))
    put(folder / "rows.jsonl", lines(sentences("line", count)) + b"{broken\n\n")
    put(folder / "rows.jsonl.gz", gzip.compress(lines(sentences("gz", 10)), mtime=0))
    put(folder / "rows.jsonl.zst", zstandard.compress(lines(sentences("zst", 10))))
    parquet(folder / "rows.parquet", [*sentences("parquet", 20), None])
    arrow(folder / "rows.arrow", sentences("arrow", 20))
    return folder


def contents(store: Path) -> dict[str, str]:
    """Digest of every object of a local store except the log, whose entries have times and uuids."""
    files = [path for path in store.rglob("*") if path.is_file() and TEMPORARY_PREFIX not in path.name]
    kept = [path for path in files if "/log/" not in str(path) and path.name != "fmscale.json"]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def commit_bodies(backend: Backend, dataset: str) -> list[dict[str, Any]]:
    """Bodies of the commits of a dataset."""
    return [dict(commit.body) for commit in open_dataset(backend, dataset).commits()]


def documents(
    backend: Backend, dataset: str, split: str, number: int | None = None
) -> list[tuple[str, int, int, bytes, list[int]]]:
    """Every document of a split of all commits, or of a commit: source, start, stop, id, tokens."""
    found = []
    for commit in open_dataset(backend, dataset).commits():
        if split not in commit.manifests or number not in (None, commit.number):
            continue
        manifest = commit.manifests[split]
        for i in range(manifest.segments):
            segment = open_segment(backend, *manifest.segment(i))
            tokens = read_tokens(backend, segment, 0, segment.tokens)
            end = 0
            for row in read_document_table(backend, segment).to_pylist():
                begin, end = end, end + row["tokens"]
                found.append((row["source"], row["start"], row["stop"], row["id"], tokens[begin:end].tolist()))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The condition's first true value. Raises AssertionError if that takes too long."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.002)
    return value
