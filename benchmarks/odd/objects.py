"""Cases of keys in a bucket of a real S3 server, and a plain client for it, which takes keys as they are."""

import hashlib
import hmac
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from benchmarks.odd import plain
from benchmarks.odd.case import Case, Reader
from benchmarks.odd.lines import THREE
from benchmarks.odd.streams import gz
from benchmarks.odd.tables import parquet, texts
from tests.helpers.s3_server import S3Server


class Bucket:
    """A bucket of a running server."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.name = server.new_bucket()

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._request("PUT", key, data=data)

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self._request("GET", key)

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, in the order of their bytes. A listing has at most 1,000."""
        answer = ElementTree.fromstring(self._request("GET", "", {"list-type": "2", "prefix": prefix}))
        return sorted(one.text or "" for one in answer.iter() if one.tag.rpartition("}")[2] == "Key")

    def _request(self, method: str, key: str, query: dict[str, str] | None = None, data: bytes = b"") -> bytes:
        """A request under signature version 4 of AWS."""
        server = self.server
        host = f"{server.host}:{server.port}"
        path = quote(f"/{self.name}/{key}", safe="/~")
        asked = "&".join(
            f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted((query or {}).items())
        )
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
        signed = ";".join(headers)
        lines = [method, path, asked, *(f"{name}:{value}" for name, value in headers.items()), "", signed, digest]
        scope = f"{moment[:8]}/{server.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
        secret = f"AWS4{server.secret_key}".encode()
        for part in (*scope.split("/"), text):
            secret = hmac.digest(secret, part.encode(), "sha256")
        credential = f"AWS4-HMAC-SHA256 Credential={server.access_key}/{scope}"
        headers["authorization"] = f"{credential}, SignedHeaders={signed}, Signature={secret.hex()}"
        url = f"http://{host}{path}{'?' * bool(asked)}{asked}"
        request = urllib.request.Request(url, method=method, data=data if method == "PUT" else None, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """A new bucket of a server of its own, whose keys are in the environment meanwhile."""
    folder.mkdir()
    with S3Server(folder) as server:
        before = dict(os.environ)
        os.environ.update(server.environment)
        try:
            yield Bucket(server)
        finally:
            os.environ.clear()
            os.environ.update(before)


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
