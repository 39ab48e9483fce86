"""Cases of keys in a bucket."""

from dataclasses import replace

from benchmarks.odd import plain
from benchmarks.odd.case import Case, Reader
from benchmarks.odd.lines import THREE
from benchmarks.odd.streams import gz
from benchmarks.odd.tables import parquet, texts


def keys(name: str, /, *keys: str, reads: Reader = plain.text, **left_out: int) -> Case:
    """A case of texts under keys."""
    objects = {key: key.encode() for key in keys}
    return Case(kind="s3", name=name, objects=objects, documents=dict.fromkeys(keys, reads), left_out=left_out)


def objects(name: str, content: dict[str, bytes], reader: Reader, /, *read: str, **left_out: int) -> Case:
    """A case of objects, of which those of `read` hold documents."""
    return Case(kind="s3", name=name, objects=content, documents=dict.fromkeys(read, reader), left_out=left_out)


OBJECTS = [
    keys("names", "a.txt", "b/c.txt", "b.txt", "a-b.txt", "a/b.txt"),
    keys("spaces, plus and percent", "a b.txt", "a+b.txt", "a%20b.txt", "a%2fb.txt", "100%.txt", " a.txt"),
    keys("marks of URLs", "a#b.txt", "a?b.txt", "a&b=c.txt", "a;b.txt", "a:b.txt", "a@b.txt", "~a.txt"),
    keys("globs and brackets", "a*b.txt", "a[1].txt", "{a,b}.txt", "a^b|c`.txt", "<a>.txt", "'a'.txt", '"a".txt'),
    keys("letters", "é.txt", "e\u0301.txt", "\U0001f600.txt", "漢字/字.txt", "A.txt", "a.txt"),
    keys("dots", "a..txt", "b...txt", "c./d.txt", "e.f.g.txt"),
    keys("long", "x" * 250 + ".txt", "/".join(["d" * 100] * 5) + "/a.txt"),
    keys("dash", "-a.txt", "--b/-c.txt"),
    objects("hidden", {".a.txt": b"x", ".git/config": b"x", "a.txt": b"a"}, plain.text, "a.txt", hidden=1, vcs=1),
    objects("0 bytes", {"a.txt": b"", "b.jsonl": b"", "c.parquet": b"", "d.txt": b"d"}, plain.text, "d.txt", empty=3),
    objects(
        "a folder's object",
        {"m/sub/": b"", "m/sub/a.txt": b"a", "m/b.txt": b"b"},
        plain.text,
        "m/sub/a.txt",
        "m/b.txt",
        empty=1,
    ),
    objects("a folder's object alone", {"sub/": b"", "a.txt": b"a"}, plain.text, "a.txt", empty=1),
    objects("a folder's object like a file", {"a.jsonl/": b"", "b.txt": b"b"}, plain.text, "b.txt", empty=1),
    # The client refuses the page of such a key, so that no other key of the page is known.
    replace(keys("control characters", "a\tb.txt", "a\x1bb.txt", "c.txt"), ends="client cannot take"),
    objects("right-to-left mark", {"a\u202eb.txt": b"x", "c.txt": b"c"}, plain.text, "c.txt", name=1),
    objects(
        "lines in gzip",
        {"a.jsonl.gz": gz(THREE), "b.jsonl.gz": gz(THREE)[:-9]},
        plain.gz_lines,
        "a.jsonl.gz",
        "b.jsonl.gz",
        broken=1,
    ),
    objects(
        "Parquet",
        {"a.parquet": parquet(texts(), row_group_size=10), "b.parquet": b"PAR1"},
        plain.parquet,
        "a.parquet",
        broken=1,
    ),
    replace(objects("JSON Lines in .json", {"a.json": THREE}, plain.lines, "a.json"), guessed="jsonl"),
    replace(keys("as arguments", "a b.txt", "c+d.txt", "é.txt"), paths=("a b.txt", "c+d.txt", "é.txt")),
    replace(keys("as an argument with percent", "a%20b.txt"), paths=("a%20b.txt",)),
    replace(keys("glob", "a.txt", "b/c.txt", "d.txt"), paths=("**/*.txt",)),
    replace(keys("missing", "a.txt"), paths=("b",), ends="nothing to ingest"),
]
