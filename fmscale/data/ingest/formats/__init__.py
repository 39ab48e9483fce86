"""Documents of each format: a module a format, with a function from a part of a file to its documents.

A file is text (one document), JSONL (a document a line), a JSON array (a document an element), Parquet or Arrow (a
document a row); text and JSON may be inside gzip or Zstandard. Big files that can be read from the middle are divided
into `of` parts; the documents of part `index` depend on the file alone: parts can be read anywhere in any order.

- `sniff.py`  the format of a file by its first bytes
- `streams.py`  uncompressed bytes of gzip and Zstandard
- `text.py`, `jsonl.py`, `array.py`  text, JSON Lines, JSON arrays
- `columns.py`  Parquet and Arrow
- `arrow_footer.py`  places and rows of the batches of an Arrow file
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import BinaryIO

FORMATS = ("text", "jsonl", "json", "parquet", "arrow")
"""Formats by the names that `--format` takes besides `auto`."""

TABLES = frozenset({"parquet", "arrow"})
"""Formats that pyarrow reads."""

EXTENSIONS = {
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("arrow", "arrows", "feather", "ipc"), "arrow"),
}
"""Formats by extension."""

READERS = {"text": "text", "jsonl": "jsonl", "json": "array", "parquet": "columns", "arrow": "columns"}
"""Modules by the format that they read."""

_TEXT = """
adoc asciidoc asm awk bash bat bib bzl c cc cfg cjs clj cljs cmake cmd conf cpp cs css cu cuh cxx d dart diff el elm
env erl ex exs f f03 f90 f95 fish for fs fsi fsx go gradle graphql groovy h hcl hh hpp hrl hs htm html hxx ini ipp
java jl js jsx kt kts less lisp lua m make markdown md mdx mk ml mli mm nim nix org pas patch php pl pm po pod pot
properties proto ps1 pxd py pyi pyx r rb rkt rmd rs rst rtf s sass scala scm scss sh sol sql srt svelte svg swift tcl
tex texi text textile tf thrift toml ts tsx txt v vb vhd vhdl vim vtt vue xhtml xml xsd xsl yaml yml zig zsh
"""

TEXT = frozenset(_TEXT.split())
"""Extensions of text and code: one document a file, whatever its first bytes."""

_TEXT_NAMES = """
authors changelog changes contributing copying dockerfile license licence makefile news notice readme todo
"""

TEXT_NAMES = frozenset(_TEXT_NAMES.split())
"""Names without an extension that are text, in any case of letters."""

COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
"""Compressions by last extension."""

_BINARY = """
7z a apk avi avif bin bmp bz2 class dat db dll dmg doc docx dylib eot exe flac gif gz h5 ico iso jar jpeg jpg ko lib
lz4 m4a mkv mo mov mp3 mp4 msi npy npz o obj odp ods odt ogg onnx otf pdf pickle pkl png ppt pptx psd pt pth pyc pyd
pyo rar rpm safetensors so sqlite sqlite3 tar tgz tif tiff ttf wasm wav webm webp whl woff woff2 xls xlsx xz zip zst
"""

BINARY = frozenset(_BINARY.split())
"""Extensions of files without text, passed over unread. Other files with a NUL byte in their first 8000 bytes (git's
rule) are passed over when they are read.
"""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A document of a file."""

    text: str
    """Text; may be empty."""
    start: int
    """First byte (of the uncompressed file) for text and JSON, row for Parquet and Arrow."""
    stop: int
    """Place behind its last byte or row."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A place in a file that gives no document."""

    reason: str
    """undecodable, broken, binary or empty."""
    where: str
    """Place in the file and the fault there; empty for the whole file."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Part of a file to be read, and the way to read it."""

    source: str
    """Source name of the file."""
    format: str
    """One of FORMATS."""
    field: str
    """Path of the text in a record, such as `a.b.text`."""
    index: int = 0
    """Number of the part."""
    of: int = 1
    """Count of the file's parts."""


Reader = Callable[[BinaryIO, FilePart], Iterator[RawDocument | Bad]]
"""Documents of a part in order. The file is seekable. Raises DataError for faults that skipping would not cure, such
as a missing column.
"""


def detect(source: str) -> str:
    """The format of a file by its name: `binary` for a file without text, empty if its first bytes must decide."""
    name = source.rsplit("/", 1)[-1].lower()
    stem, dot, extension = name.rpartition(".")
    if dot and extension in COMPRESSIONS:
        inner = detect(stem)
        return inner if inner in ("text", "jsonl", "") else "binary"
    if dot and extension in EXTENSIONS:
        return EXTENSIONS[extension]
    if dot and extension in BINARY:
        return "binary"
    return "text" if (extension in TEXT if dot else name in TEXT_NAMES) else ""


def is_plain_text(source: str) -> bool:
    """True if a name claims plain text only: people put anything into a .txt."""
    name = source.rsplit("/", 1)[-1].lower()
    return name.removesuffix(".gz").removesuffix(".zst").endswith((".txt", ".text"))


def compression(source: str) -> str:
    """gzip, zstd or empty, by the last extension."""
    return COMPRESSIONS.get(source.lower().rpartition(".")[2], "") if "." in source else ""


def splittable(source: str, format: str) -> bool:
    """True if a file can be divided into parts."""
    return format not in ("text", "json") and not compression(source)


def read(file: BinaryIO, part: FilePart) -> Iterator[RawDocument | Bad]:
    """The documents of a part."""
    reader: Reader = import_module(f"{__name__}.{READERS[part.format]}").read
    return reader(file, part)
