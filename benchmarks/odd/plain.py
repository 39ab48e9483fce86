"""Plain readers of documents: the standard library, zstandard and pyarrow, a value at a time. Nothing of fmscale.

They keep all that stands before damage, and leave out whatever is no text.
"""

import json
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Opened = Callable[[Path], bytes]
"""The uncompressed bytes of a file up to its damage."""


def raw(path: Path) -> bytes:
    """The bytes of a file."""
    return path.read_bytes()


def loaded(reader: Callable[[Path], list[Any]], data: bytes) -> list[Any]:
    """What a reader finds in the bytes of an object."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        return reader(Path(file.name))


def gunzip(path: Path) -> bytes:
    """All members of a gzip file, fed byte by byte, so that an error loses nothing before it."""
    return _fed(path.read_bytes(), lambda: zlib.decompressobj(31), zlib.error)


def unzstd(path: Path) -> bytes:
    """All frames of a Zstandard file, fed byte by byte."""
    return _fed(path.read_bytes(), lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)


def _fed(data: bytes, begin: Callable[[], Any], error: type[Exception]) -> bytes:
    parts: list[bytes] = []
    machine = begin()
    try:
        for number in range(len(data)):
            if machine.eof:
                machine = begin()
            parts.append(machine.decompress(data[number : number + 1]))
    except error:
        pass
    return b"".join(parts)


def text(path: Path, opened: Opened = raw) -> list[str]:
    """The whole file, without a byte order mark."""
    return [opened(path).decode("utf-8-sig")]


def lines(path: Path, opened: Opened = raw, names: tuple[str, ...] = ("text",)) -> list[str]:
    """The text in each line's field, of lines that hold such a text."""
    data = opened(path).removeprefix(b"\xef\xbb\xbf")
    return [found for line in data.split(b"\n") for found in line_texts(line, names)]


def objects(path: Path) -> list[dict[str, Any]]:
    """The object of each line that is one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def line_texts(line: bytes, names: tuple[str, ...] = ("text",)) -> Iterator[str]:
    """The text of a line, if it is one."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return
    yield from _text(value, names)


def _text(value: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str) and value and all(not 0xD800 <= ord(mark) < 0xE000 for mark in value):
        yield value


def array(path: Path, opened: Opened = raw) -> list[str]:
    """The texts of a whole array: of objects, or of texts."""
    elements = json.loads(opened(path).decode("utf-8-sig"))
    return [found for one in elements for found in ([one] if isinstance(one, str) else _text(one, ("text",)))]


def parquet(path: Path, names: tuple[str, ...] = ("text",)) -> list[str]:
    """The text of each row, a row at a time."""
    return list(_rows(pq.ParquetFile(path).iter_batches(batch_size=1), names))


def arrow(path: Path, names: tuple[str, ...] = ("text",)) -> list[str]:
    """The text of each row of an Arrow file."""
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return list(_rows((reader.get_batch(number) for number in range(reader.num_record_batches)), names))


def arrow_stream(path: Path, names: tuple[str, ...] = ("text",)) -> list[str]:
    """The text of each row of an Arrow stream."""
    with pa.OSFile(str(path)) as source:
        return list(_rows(pa.ipc.open_stream(source), names))


def _rows(batches: Any, names: tuple[str, ...]) -> Iterator[str]:
    for batch in batches:
        for number in range(batch.num_rows):
            try:
                value = batch.column(names[0])[number].as_py()
                for name in names[1:]:
                    value = value and value.get(name)
                value = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                continue
            if value:
                yield value


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file with all columns."""
    return [row for batch in pq.ParquetFile(path).iter_batches(batch_size=1) for row in batch.to_pylist()]


def tar(path: Path) -> list[dict[str, Any]]:
    """The records of a WebDataset tar: consecutive members of one key, by extension."""
    records: list[dict[str, Any]] = []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or not stem or not extension:
                continue
            key = folder + slash + stem
            if not records or records[-1]["__key__"] != key or extension in records[-1]:
                records.append({"__key__": key})
            records[-1][extension] = content.read()
    return records


gz_lines = partial(lines, opened=gunzip)
zst_lines = partial(lines, opened=unzstd)
gz_text = partial(text, opened=gunzip)
zst_text = partial(text, opened=unzstd)


def main() -> None:
    """Print the texts of damaged tables as JSON, each up to its damage: pyarrow may end this process."""
    for path in map(Path, sys.argv[1:]):
        print(json.dumps([path.name, ""]), flush=True)
        with suppress(pa.ArrowException, OSError, ValueError, SystemError, MemoryError):
            for batch in _batches(path):
                batch.validate(full=True)
                for found in _rows([batch], ("text",)):
                    print(json.dumps([path.name, found]), flush=True)


def _batches(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path, page_checksum_verification=True).iter_batches(batch_size=1)
        return
    reader = pa.ipc.open_file(pa.OSFile(str(path)))
    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


if __name__ == "__main__":
    main()
