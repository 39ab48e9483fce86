"""Cases of text: encodings, line ends, and files whose names do not show a format."""

import json
from dataclasses import replace

from benchmarks.odd import plain
from benchmarks.odd.case import Case, Reader, anything, file, files
from benchmarks.odd.lines import BOM, OBJECTS, THREE, many, rows

CSV = b'id,text\n1,"a, b"\n2,"c\nd"\n'


def text(name: str, data: bytes, path: str = "a.txt", *, read: bool = True, **left_out: int) -> Case:
    """A case of text."""
    return file("text", name, path, data, plain.text if read else None, **left_out)


def guess(name: str, path: str, data: bytes, reader: Reader, guessed: str = "", **left_out: int) -> Case:
    """A case of a name that does not show the format."""
    return replace(file("guess", name, path, data, reader, **left_out), guessed=guessed)


ENCODINGS = [
    text("plain", b"one\ntwo\n"),
    text("0 bytes", b"", read=False, empty=1),
    text("0 bytes of code", b"", "a.py", read=False, empty=1),
    text("1 byte", b"x"),
    text("only a newline", b"\n"),
    text("only newlines", b"\n" * 5000),
    text("only white space", b" \t\r\n "),
    text("only a byte order mark", BOM, read=False, empty=1),
    text("byte order mark", BOM + "é".encode()),
    text("two byte order marks", BOM + BOM + b"a"),
    text("CRLF", b"a\r\nb\r\n"),
    text("CR alone", b"a\rb\r"),
    text("U+2028, U+2029, U+0085, VT, FF", "a\u2028b\u2029c\u0085d\x0be\x0cf".encode()),
    text("no newline at the end", b"a\nb"),
    text("escape sequences", b"\x1b[31mred\x1b[0m\x07\x7f\x08"),
    text("noncharacters", "\uffff\ufffe\U0010ffff\ufdd0".encode()),
    text("right to left and combining marks", "\u202e\u05d0e\u0301\u200f\u2066".encode()),
    text("composed and decomposed", "é e\u0301 \ufb01 Å \u212b".encode()),
    text("UTF-16, little end", "text é".encode("utf-16"), read=False, binary=1),
    text("UTF-16, big end", b"\xfe\xff" + "text é".encode("utf-16-be"), read=False, binary=1),
    text("UTF-16 without a NUL", "漢字漢字".encode("utf-16"), read=False, undecodable=1),
    text("UTF-32", "text".encode("utf-32"), read=False, binary=1),
    text("Latin-1", "caf\xe9".encode("latin-1"), read=False, undecodable=1),
    text("Shift JIS", "日本語".encode("shift-jis"), read=False, undecodable=1),
    text("raw bytes of a surrogate", b"a\xed\xa0\x80", read=False, undecodable=1),
    text("overlong UTF-8", b"a\xc0\xaf", read=False, undecodable=1),
    text("UTF-8 of five bytes", b"a\xf8\x88\x80\x80\x80", read=False, undecodable=1),
    text("cut at the end", "aé".encode()[:-1], read=False, undecodable=1),
    text("invalid at byte 2,000,000", b"a" * 2_000_000 + b"\xff", read=False, undecodable=1),
    text("NUL at the start", b"\0text", read=False, binary=1),
    text("NUL at byte 7,999", b"a" * 7999 + b"\0", read=False, binary=1),
    text("NUL at byte 8,000", b"a" * 8000 + b"\0b"),
    text("a line of 3 MB", b"word " * 600_000),
    text("Markdown", b"# Title\n\n- a\n- b\n", "README.md"),
    text("name in capitals", b"text\n", "NOTES.TXT"),
    text("code", "def f():\r\n\treturn 'é'\n".encode(), "a.py"),
    text("name without an extension", b"all:\n\ttrue\n", "Makefile"),
    text("objects in Markdown", THREE, "a.md"),
    text("array in a text", OBJECTS, "a.txt"),
]

HF_INFO = json.dumps({"features": {"text": {"dtype": "string"}}}).encode()

GUESSES = [
    guess("JSON Lines in .json", "data.json", THREE, plain.lines, "jsonl"),
    guess("JSON Lines behind a number", "c4-train.00000-of-01024", THREE, plain.lines, "jsonl"),
    guess("JSON Lines in .json with a mark", "data.json", BOM + THREE, plain.lines, "jsonl"),
    guess("JSON Lines in .log", "a.log", THREE, plain.lines, "jsonl"),
    guess("JSON Lines in .txt", "a.txt", many(30), plain.lines, "jsonl"),
    guess("an array in .json", "data.json", OBJECTS, plain.array, "json"),
    guess("an array without an extension", "data", OBJECTS, plain.array, "json"),
    guess(
        "half of the lines are objects", "a.dat1", rows("a", "b") + b"{\n" + rows("c"), plain.lines, "jsonl", broken=1
    ),
    guess("package.json", "package.json", b'{"name": "x", "version": "1.0.0"}\n', plain.text, "text"),
    guess("CSV", "a.csv", CSV, plain.text, "text"),
    guess("TSV", "a.tsv", CSV.replace(b",", b"\t"), plain.text, "text"),
    guess("sections", "a.settings", b"[section]\na = 1\n", plain.text, "text"),
    guess("notebook", "a.ipynb", json.dumps({"cells": [{"source": ["a"]}]}, indent=1).encode(), plain.text, "text"),
    guess("unknown extension", "a.qqq", b"just text\n", plain.text, "text"),
    guess("dot at the end", "a.", b"just text\n", plain.text, "text"),
    file("guess", "an image named .txt", "a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", binary=1),
    file("guess", "bytes of an unknown extension", "a.qqq", bytes(range(256)) * 4, binary=1),
    file("guess", "0 bytes of an unknown extension", "a.qqq", b"", empty=1),
    file("guess", "binary extensions", "a.png", b"text", binary=1),
    file("guess", "pickle", "a.pkl", b"\x80\x04N.", binary=1),
    file("guess", "safetensors", "a.safetensors", b"\x02\0\0\0\0\0\0\0{}", binary=1),
    anything(file("guess", "gzip named .jsonl", "a.jsonl", b"\x1f\x8b\x08\0" + bytes(40))),
    anything(file("guess", "JSON Lines named .parquet", "a.parquet", THREE)),
    anything(file("guess", "JSON Lines named .arrow", "a.arrow", THREE)),
    files(
        "guess",
        "texts beside each other",
        {"b/a.txt": b"3", "a.txt": b"1", "a/b.txt": b"2", "c/d/e/f.txt": b"5", "b.txt": b"4"},
        dict.fromkeys(("a.txt", "a/b.txt", "b.txt", "b/a.txt", "c/d/e/f.txt"), plain.text),
    ),
]
