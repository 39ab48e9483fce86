"""Reading documents: one file a format, each a function from a file, or a piece of one, to documents.

A file is text (one document), JSONL (one a line), Parquet or Arrow (one a row), perhaps inside gzip or
Zstandard. Big files that can be read from the middle are divided into `of` pieces; which documents belong to
piece `index` depends on the file alone, so pieces can be read anywhere in any order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import BinaryIO

FORMATS = ("text", "jsonl", "parquet", "arrow")
"""Formats by the names that `--format` takes besides `auto`."""

TABLES = frozenset({"parquet", "arrow"})
"""Formats that pyarrow reads."""

EXTENSIONS = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
    "arrow": "arrow",
    "arrows": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
}
"""Formats by extension; every other extension is text unless it is one of BINARY."""

COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
"""Compressions by last extension."""

_BINARY = """
7z a apk avi avif bin bmp bz2 class dat db dll dmg doc docx dylib eot exe flac gif gz h5 ico iso jar jpeg
jpg ko lib lz4 m4a mkv mo mov mp3 mp4 msi npy npz o obj odp ods odt ogg onnx otf pdf pickle pkl png ppt
pptx psd pt pth pyc pyd pyo rar rpm safetensors so sqlite sqlite3 tar tgz tif tiff ttf wasm wav webm webp
whl woff woff2 xls xlsx xz zip zst
"""

BINARY = frozenset(_BINARY.split())
"""Extensions of files that hold no text, passed over without being read. Other files with a NUL byte in
their first 8000 bytes (git's rule) are passed over when they are read.
"""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file."""

    text: str
    """Its text; may be empty."""
    start: int
    """Where it begins: a byte (of the uncompressed file) for text and JSONL, a row for Parquet and Arrow."""
    stop: int
    """One past where it ends."""


@dataclass(frozen=True, slots=True)
class Bad:
    """Something in a file that gives no document."""

    reason: str
    """undecodable, broken, binary or empty."""
    where: str
    """Where in the file and what is wrong; empty for the file as a whole."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Which part of a file is to be read, and how."""

    source: str
    """The file's source name."""
    format: str
    """One of FORMATS."""
    field: str
    """Path of the text in a record, for instance `a.b.text`."""
    index: int = 0
    """Number of the piece."""
    of: int = 1
    """How many pieces the file is divided into."""


Reader = Callable[[BinaryIO, Piece], Iterator[Document | Bad]]
"""Documents of a piece in order. The file is seekable. Raises DataError for what skipping would not cure,
such as a column that is not there.
"""


def detect(source: str) -> str:
    """The format of a file by its extension, or `binary`."""
    name = source.rsplit("/", 1)[-1].lower()
    stem, dot, extension = name.rpartition(".")
    if dot and extension in COMPRESSIONS:
        inner = detect(stem) if stem else "text"
        return inner if inner in ("text", "jsonl") else "binary"
    if dot and extension in EXTENSIONS:
        return EXTENSIONS[extension]
    return "binary" if dot and extension in BINARY else "text"


def compression(source: str) -> str:
    """gzip, zstd or empty, by the last extension."""
    return COMPRESSIONS.get(source.lower().rpartition(".")[2], "") if "." in source else ""


def splittable(source: str, format: str) -> bool:
    """Whether a file can be divided into pieces."""
    return format != "text" and not compression(source)


def read(file: BinaryIO, piece: Piece) -> Iterator[Document | Bad]:
    """The documents of a piece."""
    module = "columns" if piece.format in TABLES else piece.format
    reader: Reader = import_module(f"{__name__}.{module}").read
    return reader(file, piece)
