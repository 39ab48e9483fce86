"""Documents, or records, of each format: a module a format, with a function from a part of a file to its documents.

A file is text (one document), JSONL (a document a line), a JSON array (a document an element), Parquet or Arrow (a
document a row); text and JSON may be inside gzip or Zstandard. Big files that can be read from the middle are divided
into `of` parts; the documents of part `index` depend on the file alone: parts can be read anywhere in any order.
Records are the whole objects and rows; they also come from tars (a record for members of one name) and media files.

- `sniff.py`  the format of a file by its first bytes
- `streams.py`  uncompressed bytes of gzip and Zstandard
- `text.py`, `jsonl.py`, `array.py`  text, JSON Lines, JSON arrays
- `columns.py`  Parquet and Arrow
- `tar.py`, `media.py`  records of WebDataset tars, and of images, audio and video
- `arrow_footer.py`  places and rows of the batches of an Arrow file
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO

FORMATS = {
    "text": ("text", "jsonl", "json", "parquet", "arrow"),
    "records": ("jsonl", "json", "parquet", "arrow", "tar", "media"),
}
"""Formats by the names that `--format` takes besides `auto`, for documents and for records."""

TABLES = frozenset({"parquet", "arrow"})
"""Formats that pyarrow reads."""

SINGLE = frozenset({"text", "media"})
"""Formats of files that are one document or record."""

EXTENSIONS = {
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("arrow", "arrows", "feather", "ipc"), "arrow"),
}
"""Formats by extension."""

_MEDIA = "avif bmp gif ico jpeg jpg png tif tiff webp flac m4a mp3 ogg wav avi mkv mov mp4 webm"

RECORD_EXTENSIONS = {"tar": "tar", **dict.fromkeys(_MEDIA.split(), "media")}
"""Formats, by extension, of records alone: documents are not in such files."""

BESIDE = "beside"
"""Format of a file whose content goes into the record of the media file before it in the listing."""

READERS = {"text": "text", "jsonl": "jsonl", "json": "array", "parquet": "columns", "arrow": "columns", "tar": "tar"}
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

    data: bytes
    """Text in UTF-8, checked; may be empty. As `str`, one sign outside of the BMP makes a text four times as large."""
    start: int
    """First byte (of the uncompressed file) for text and JSON, row for Parquet and Arrow."""
    stop: int
    """Place behind its last byte or row."""

    @property
    def text(self) -> str:
        return self.data.decode()


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record of a file that is no table."""

    values: dict[str, Any]
    """Values by column; empty for a record without columns."""
    start: int
    """First byte in the uncompressed file."""
    stop: int
    """Place behind its last byte."""
    bytes: int
    """Size of the values, about."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Consecutive records of a table."""

    batch: Any
    """The rows, as a pyarrow.RecordBatch of storable types."""
    start: int
    """Row number of the first in its file."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A place in a file that gives no document."""

    reason: str
    """undecodable, broken, unreadable, binary, empty or long."""
    where: str
    """Place in the file and the fault there; empty for the whole file."""


MAX_DOCUMENT = 64 << 20
"""Bytes of the largest document or record by default: a writer needs up to four times as much memory."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Part of a file to be read, and the way to read it."""

    source: str
    """Source name of the file."""
    format: str
    """One of FORMATS."""
    field: str | None
    """Path of the text in a record, such as `a.b.text`; None for records."""
    index: int = 0
    """Number of the part."""
    of: int = 1
    """Count of the file's parts."""
    max_document: int = MAX_DOCUMENT
    """Bytes of the largest document or record; longer ones are passed over."""
    begin: int = 0
    """Place at which the new end of a file that has grown begins; a reader may pass over all before it."""

    def too_long(self, where: str) -> Bad:
        """The entry of a document that is too long."""
        return Bad("long", f"{where}{': ' if where else ''}more than {self.max_document} bytes")


Item = RawDocument | RawRecord | RawBatch | Bad

Reader = Callable[[BinaryIO, FilePart], Iterator[Item]]
"""Documents or records of a part in order. The file is seekable. Raises DataError for faults that skipping would not
cure, such as a missing column.
"""


def item_of(content: bytes | dict[str, Any] | Bad, start: int, stop: int) -> Item:
    """The document or the record at a place of a file."""
    if isinstance(content, dict):
        return RawRecord(content, start, stop, stop - start)
    return RawDocument(content, start, stop) if isinstance(content, bytes) else content


def follow(value: Any, field: str) -> Any:
    """The value in a field of an object: under the whole name first, else along a path. Raises KeyError without it."""
    names = field.split(".")
    for count in range(len(names), 0, -1):
        name = ".".join(names[:count])
        if isinstance(value, dict) and name in value:
            with suppress(KeyError):
                return value[name] if count == len(names) else follow(value[name], field[len(name) + 1 :])
    raise KeyError(field)


def detect(source: str, kind: str = "text") -> str:
    """The format of a file by its name: `binary` for a file without text, empty if its first bytes must decide."""
    name = source.rsplit("/", 1)[-1].lower()
    stem, dot, extension = name.rpartition(".")
    if dot and extension in COMPRESSIONS:
        inner = detect(stem)
        return inner if inner in ("text", "jsonl", "") else "binary"
    if dot and extension in EXTENSIONS:
        return EXTENSIONS[extension]
    if kind == "records" and dot and extension in RECORD_EXTENSIONS:
        return RECORD_EXTENSIONS[extension]
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
    return format in ("jsonl", "parquet", "arrow") and not compression(source)


def read(file: BinaryIO, part: FilePart) -> Iterator[Item]:
    """The documents or records of a part; a file without any is empty."""
    reader: Reader = import_module(f"{__name__}.{READERS[part.format]}").read
    items = iter(reader(file, part)) if part.of > 1 or file.seek(0, 2) else iter(())
    file.seek(0)
    first = next(items, None if part.of > 1 else Bad("empty", ""))
    if first is not None:
        yield first
    del first  # with its name a huge document would stay in memory while the next is read
    yield from items
