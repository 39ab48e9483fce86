"""Cases of JSON Lines and JSON arrays."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.odd import plain
from benchmarks.odd.case import ANY, Case, anything, file

BOM = b"\xef\xbb\xbf"


def line(**values: Any) -> bytes:
    """A line with an object."""
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def rows(*texts: Any) -> bytes:
    """Lines with these values in the field `text`."""
    return b"".join(line(text=text) for text in texts)


def many(count: int, word: str = "row") -> bytes:
    """Lines of different lengths and texts."""
    return rows(*(f"{word} {number} " + "ab é \n" * (number % 9) for number in range(count)))


THREE = many(3)


def jsonl(name: str, data: bytes, path: str = "a.jsonl", /, **left_out: int) -> Case:
    """A case of JSON Lines."""
    return file("lines", name, path, data, plain.lines, **left_out)


def array(name: str, data: bytes, path: str = "a.json", **left_out: int) -> Case:
    """A case of a whole JSON array."""
    return file("array", name, path, data, plain.array, **left_out)


def dotted(name: str, field: str, data: bytes, names: tuple[str, ...], **left_out: int) -> Case:
    """A case of a field's path."""
    reader = partial(plain.lines, names=names)
    return replace(file("field", name, "a.jsonl", data, reader, **left_out), options={"field": field})


LINES = [
    jsonl("three", THREE),
    jsonl("ndjson", THREE, "a.ndjson"),
    jsonl("no newline at the end", THREE[:-1]),
    jsonl("CRLF", THREE.replace(b"\n", b"\r\n")),
    jsonl("CRLF mixed with LF", rows("a") + rows("b").replace(b"\n", b"\r\n") + rows("c")),
    jsonl("CR alone", rows("a", "b", "c").replace(b"\n", b"\r"), broken=1),
    jsonl("U+2028, U+2029, U+0085 in texts", rows("a\u2028b", "c\u2029d", "e\u0085f")),
    jsonl("raw vertical tab in a text", rows("a") + b'{"text": "b\x0bc"}\n' + rows("d"), broken=1),
    jsonl("vertical tab and form feed between", rows("a") + b"\x0b\n\x0c\n" + rows("b")),
    jsonl("100,000 empty lines", rows("a") + b"\n" * 100_000 + rows("b")),
    jsonl("lines of white space", b" \n\t\t\n" + rows("a") + b"   \r\n" + rows("b")),
    jsonl("only newlines", b"\n" * 1000, empty=1),
    jsonl("0 bytes", b"", empty=1),
    jsonl("1 byte", b"{", broken=1),
    jsonl("byte order mark", BOM + THREE),
    jsonl("byte order mark and CRLF", BOM + THREE.replace(b"\n", b"\r\n")),
    jsonl("byte order mark in the middle", rows("a") + BOM + rows("b", "c"), broken=1),
    anything(file("lines", "UTF-16", "a.jsonl", THREE.decode().encode("utf-16"))),
    anything(file("lines", "UTF-32", "a.jsonl", THREE.decode().encode("utf-32"))),
    jsonl("a line of Latin-1", rows("a") + '{"text": "caf\xe9"}\n'.encode("latin-1") + rows("b"), undecodable=1),
    jsonl("cut UTF-8 in a line", rows("a") + b'{"text": "\xe2\x82"}\n' + rows("b"), undecodable=1),
    jsonl("overlong UTF-8", rows("a") + b'{"text": "\xc0\xaf"}\n' + rows("b"), undecodable=1),
    jsonl("half of a surrogate pair", rows("a") + b'{"text": "\\ud800"}\n' + rows("b"), undecodable=1),
    jsonl("a surrogate pair", b'{"text": "\\ud83d\\ude00"}\n'),
    jsonl("raw bytes of a surrogate", rows("a") + b'{"text": "\xed\xa0\x80"}\n', undecodable=1),
    jsonl("NUL as an escape", b'{"text": "a\\u0000b"}\n' + rows("c")),
    jsonl("raw NUL in a line", rows("a") + b'{"text": "a\0b"}\n' + rows("c"), broken=1),
    jsonl("block of NUL at the end", THREE + b"\0" * 4096, broken=1),
    jsonl("escapes", b'{"text": "\\/\\b\\f\\t\\u00e9\\\\n \\"q\\""}\n'),
    jsonl("astral, combining, right to left", rows("\U0001f600e\u0301\u202e\u05d0\u05d1 \uffff\ufffe")),
    jsonl("empty text", rows("a", "", "b"), empty=1),
    jsonl("text of white space", rows(" ", "\n", "\t \n")),
    jsonl("null", rows("a", None, "b"), empty=1),
    jsonl("number, boolean, list, object", rows(1, 2.5, True, ["a"], {"b": "c"}, "d"), broken=5),
    jsonl("no field", rows("a") + line(other="b") + line(TEXT="c"), broken=2),
    jsonl("a name twice", b'{"text": "first", "text": "last"}\n'),
    jsonl("integer of 5,000 digits", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n" + rows("b")),
    jsonl("integer of 400 digits", b'{"text": "a", "n": ' + b"9" * 400 + b"}\n" + rows("b")),
    jsonl("NaN, Infinity, 1e999", b'{"text": "a", "n": [NaN, Infinity, -Infinity, 1e999, -0.0]}\n'),
    jsonl("depth 500", b'{"text": "a", "n": ' + b"[" * 500 + b"]" * 500 + b"}\n" + rows("b")),
    jsonl("depth 100,000", b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + rows("b"), broken=1),
    jsonl("comma, quotes, comment", b'{"text": "a",}\n{\'text\': "b"}\n{"text": "c"} // d\n' + rows("e"), broken=3),
    jsonl("array and values as lines", rows("a") + b'["b"]\n"c"\n1\nnull\n' + rows("d"), broken=4),
    jsonl("two objects in a line", rows("a") + b'{"text": "b"}{"text": "c"}\n' + rows("d"), broken=1),
    jsonl("cut in the last line", THREE[:-9], broken=1),
    jsonl("white space around objects", b'  {"text" : "a"}  \n\t{ "text":"b" }\t\r\n'),
    jsonl("a line of 3 MB", rows("a", "b" * 3_000_000, "c")),
    jsonl("20,000 lines", many(20_000)),
    replace(
        jsonl("objects over several lines", json.dumps({"text": "a"}, indent=1).encode()),
        documents={},
        left_out={"*": ANY},
    ),
    *(
        replace(jsonl(f"parts: {name}", data, "a.jsonl", broken=broken), options={"unit_bytes": 997})
        for name, data, broken in (
            ("lines", many(400), 0),
            ("CRLF and a mark", BOM + many(300).replace(b"\n", b"\r\n"), 0),
            ("a line longer than parts", rows("a", "b" * 20_000, "c"), 0),
            ("empty lines", b"\n" * 9000 + rows("a") + b"\n" * 9000 + rows("b"), 0),
            ("CR alone", many(50).replace(b"\n", b"\r"), 1),
        )
    ),
    dotted(
        "path",
        "meta.text",
        line(meta={"text": "a"}) + line(meta={"other": "b"}) + line(meta="c"),
        ("meta", "text"),
        broken=2,
    ),
    dotted("name with a dot", "meta.text", line(**{"meta.text": "a"}) + line(**{"meta.text": "b"}), ("meta.text",)),
    dotted("whole name before path", "meta.text", line(**{"meta.text": "a", "meta": {"text": "b"}}), ("meta.text",)),
    dotted("name with a quote and a space", "a 'b\"", line(**{"a 'b\"": "x"}), ("a 'b\"",)),
]

OBJECTS = json.dumps([{"text": "a"}, {"text": "b"}, {"text": "é\u2028"}], ensure_ascii=False).encode()

ARRAYS = [
    array("objects", OBJECTS),
    array("indented", json.dumps(json.loads(OBJECTS), indent=2).encode()),
    array("texts", b'["a", "b", "c"]'),
    array("byte order mark", BOM + OBJECTS),
    array("white space", b"\r\n\t " + OBJECTS + b" \n\n"),
    array("empty", b"[]", empty=1),
    array("null and empty texts", b'[{"text": "a"}, {"text": null}, {"text": ""}, {"text": "b"}]', empty=2),
    array("other values", b'[{"text": "a"}, 1, null, {"text": 2}, [], {"text": "b"}]', broken=4),
    array("half of a surrogate pair", b'[{"text": "a"}, {"text": "\\ud800"}, {"text": "b"}]', undecodable=1),
    array("integer of 5,000 digits", b'[{"text": "a"}, {"text": "b", "n": ' + b"9" * 5000 + b'}, {"text": "c"}]'),
    array(
        "5,000 elements", json.dumps([{"text": f"text {i} " * (i % 50)} for i in range(1, 5001)]).encode(), empty=100
    ),
    array("JSON Lines by name", OBJECTS, "a.jsonl"),
    *(
        file("array", name, "a.json", data, lambda path: ["a", "b"], **left_out)
        for name, data, left_out in (
            ("cut", b'[{"text": "a"}, {"text": "b"}, {"te', {"broken": 1}),
            ("cut behind a comma", b'[{"text": "a"}, {"text": "b"}, ', {"broken": 1}),
            ("more behind its end", b'[{"text": "a"}, {"text": "b"}] x', {"broken": 1}),
            ("a comma too many", b'[{"text": "a"}, {"text": "b"},]', {"broken": 1}),
            ("no comma", b'[{"text": "a"}, {"text": "b"} {"text": "c"}]', {"broken": 1}),
            ("invalid bytes", b'[{"text": "a"}, {"text": "b"}, {"text": "\xff"}]', {"undecodable": 1}),
            (
                "depth 100,000",
                b'[{"text": "a"}, {"text": "b"}, ' + b"[" * 100_000 + b"]" * 100_000 + b"]",
                {"broken": 1},
            ),
        )
    ),
]
