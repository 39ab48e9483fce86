"""Files of arguments: folders, globs, files and URLs, in any order and from anywhere."""

import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import urllib.request
import uuid
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from fmscale.data.ingest.files import open_files
from fmscale.data.ingest.plan import IngestPlan, Options, document_id, group, is_heldout, make_plan
from fmscale.data.ingest.record import SkippedInput
from fmscale.data.ingest.sources import File, Listing, list_sources
from fmscale.errors import AccessDenied, ConfigError, DataError
from fmscale.store.open import open_store
from tests.data.ingest.corpora import MOMENT, put
from tests.helpers.s3_server import S3Server

OPTIONS = Options(field="text", heldout=0.0, tokenizer="bytes", bos=False, eos=True)


def tree(folder: Path) -> Path:
    for name in ("a.md", "b/c.py", "b/d.jsonl", "b-e.txt", "z/deep/er.txt"):
        put(folder / name, name)
    return folder


def names(listing: Listing) -> list[str]:
    return [file.source for file in listing.files]


def read_all(listing: Listing) -> dict[str, bytes]:
    found = {}
    for file in listing.files:
        with open_files(listing.roots[file.root].url)(file) as opened:
            found[file.source] = opened.read()
    return found


def plan(*arguments: str) -> IngestPlan:
    return make_plan(list_sources(arguments), OPTIONS, None)


def test_folders_are_listed_in_order_of_names(tmp_path: Path) -> None:
    listing = list_sources([str(tree(tmp_path))])
    assert names(listing) == ["a.md", "b-e.txt", "b/c.py", "b/d.jsonl", "z/deep/er.txt"]
    assert [file.format for file in listing.files] == ["text", "text", "text", "jsonl", "text"]
    assert read_all(listing) == {name: name.encode() for name in names(listing)}


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    tree(tmp_path)
    for name in (".hidden", ".git/config", "b/.cache/x", "CVS/Root", "image.png"):
        put(tmp_path / name, "x")
    os.symlink(tmp_path, tmp_path / "b/loop")
    os.symlink("nowhere", tmp_path / "b/broken")
    os.symlink(tmp_path / "a.md", tmp_path / "b/linked.md")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), "x")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        listing = list_sources([str(tmp_path)], store=str(tmp_path / "z"))
    assert names(listing) == ["a.md", "b-e.txt", "b/c.py", "b/d.jsonl", "b/linked.md"]
    expected = {"hidden": 2, "vcs": 2, "link": 2, "name": 1, "special": 1, "store": 1, "binary": 1}
    assert {reason: names["count"] for reason, names in listing.skipped.items()} == expected
    assert listing.skipped["store"]["first"] == ["z"]


def test_named_files_are_taken_even_if_hidden_or_binary_by_name(tmp_path: Path) -> None:
    tree(tmp_path)
    put(tmp_path / ".notes", "x")
    put(tmp_path / "x.png", "x")
    assert names(list_sources([str(tmp_path / ".notes"), str(tmp_path / "x.png")])) == [".notes", "x.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["a.md", "b-e.txt"]),
        ("**", ["a.md", "b-e.txt", "b/c.py", "b/d.jsonl", "z/deep/er.txt"]),
        ("**/*.txt", ["b-e.txt", "z/deep/er.txt"]),
        ("b/*.py", ["b/c.py"]),
        ("*/*", ["b/c.py", "b/d.jsonl"]),
        ("[ab].md", ["a.md"]),
        ("z/**/er.txt", ["z/deep/er.txt"]),
        ("b/?.py", ["b/c.py"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, found: list[str]) -> None:
    listing = list_sources([f"{tree(tmp_path)}/{pattern}"])
    short = [name.removeprefix("b/").removeprefix("z/") for name in found]
    assert names(listing) in (found, short)


def test_the_order_and_number_of_arguments_do_not_matter(tmp_path: Path) -> None:
    tree(tmp_path)
    arguments = [str(tmp_path / name) for name in ("b", "z", "a.md")]
    one = list_sources(arguments)
    assert names(one) == ["a.md", "b/c.py", "b/d.jsonl", "z/deep/er.txt"]
    assert list_sources([*arguments[::-1], str(tmp_path / "b/c.py"), arguments[0]]).files[0] == one.files[0]
    assert names(list_sources([*arguments, str(tmp_path / "b/c.py")])) == names(one)
    assert plan(*arguments).job == plan(*arguments[::-1]).job


def test_a_moved_tree_keeps_names_ids_and_job(tmp_path: Path) -> None:
    before = plan(str(tree(tmp_path / "one")))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "one").rename(tmp_path / "elsewhere/two")
    after = plan(str(tmp_path / "elsewhere/two"))
    assert after.job == before.job
    put(tmp_path / "elsewhere/two/a.md", "b.md")
    assert plan(str(tmp_path / "elsewhere/two")).job == before.job
    os.utime(tmp_path / "elsewhere/two/a.md", (1, 1))
    assert plan(str(tmp_path / "elsewhere/two")).job != before.job


def test_nothing_to_ingest(tmp_path: Path) -> None:
    put(tmp_path / "only.png", "x")
    with pytest.raises(DataError, match="1 binary"):
        list_sources([str(tmp_path)])
    with pytest.raises(ConfigError, match="no such file"):
        list_sources([str(tmp_path / "missing")])
    with pytest.raises(DataError, match="cannot be listed"):
        list_sources([str(tmp_path / "missing/*.txt")])


def test_a_file_that_changes_after_the_listing_is_an_error(tmp_path: Path) -> None:
    listing = list_sources([str(tree(tmp_path))])
    for change, found in (("different size", "14 bytes, 4 when it was listed"), ("e.md", "s after the time in the")):
        (tmp_path / "a.md").write_text(change)
        with pytest.raises(DataError, match="changed while") as caught:
            read_all(listing)
        assert found in str(caught.value.found)
    (tmp_path / "a.md").unlink()
    with pytest.raises(DataError, match="changed while") as caught:
        read_all(listing)
    assert "it is gone" in str(caught.value.found)


CHANGES: dict[str, Callable[[Path], object]] = {
    "append": lambda path: path.open("ab").write(b"more"),
    "truncate": lambda path: os.truncate(path, 3),
    "touch": lambda path: os.utime(path, (MOMENT, MOMENT + 1)),
    "replace": lambda path: put(path.with_name(".new"), "x" * 5000).rename(path),
    "remove": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: str) -> None:
    path = put(tmp_path / "a.md", "x" * 10_000)
    file = list_sources([str(tmp_path)]).files[0]
    with ExitStack() as stack:
        opened = stack.enter_context(open_files(str(tmp_path))(file))
        opened.read(1)
        CHANGES[change](path)
        opened.read()
        with pytest.raises(DataError, match="changed while"):
            stack.close()


def test_an_object_that_changes_while_it_is_read_is_an_error(store_url: str) -> None:
    backend = open_store(store_url)
    url = store_url if "://" in store_url else f"file://{store_url}"
    for first in (1, 10_000):
        for after in (b"y" * 20_000, b"y", None):
            backend.put("a.md", b"x" * 10_000)
            listed = list_sources([url]).files[0]
            with ExitStack() as stack:
                opened = stack.enter_context(open_files(url, ahead=100)(listed))
                opened.read(first)
                if after is None:
                    backend.delete("a.md")
                else:
                    backend.put("a.md", after)
                stack.callback(opened.read)
                with pytest.raises(DataError, match="changed while"):
                    stack.close()


def test_links_are_followed_to_files_below_the_folder_only(tmp_path: Path) -> None:
    tree(tmp_path / "in")
    put(tmp_path / "outside/secret.txt", "secret")
    put(tmp_path / "in-beside/b.txt", "x")
    links: dict[str, str | Path] = {
        "inside.txt": "b/c.py",
        "b/up.txt": "../a.md",
        "absolute.txt": tmp_path / "in/a.md",
        "chain.txt": "inside.txt",
        "out.txt": "../outside/secret.txt",
        "passwd.txt": "/etc/passwd",
        "beside.txt": "../in-beside/b.txt",
        "folder": "../outside",
        "through.txt": "folder/secret.txt",
        "itself.txt": "itself.txt",
        "one.txt": "two.txt",
        "two.txt": "one.txt",
        "below.txt": "a.md/sub",
        "long.txt": "x" * 300,
        "store.txt": "z/deep/er.txt",
        "device.txt": "/dev/zero",
    }
    for name, target in links.items():
        os.symlink(target, tmp_path / "in" / name)
    listing = list_sources([str(tmp_path / "in")], store=str(tmp_path / "in/z"))
    taken = {"inside.txt", "b/up.txt", "absolute.txt", "chain.txt"}
    assert set(names(listing)) == {"a.md", "b-e.txt", "b/c.py", "b/d.jsonl", *taken}
    assert listing.skipped["link"]["count"] == len(links) - len(taken)
    assert names(list_sources([str(tmp_path / "in/out.txt")])) == ["out.txt"], "an argument asks for it"


def test_entries_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """In a process without root's right to read everything."""
    tree(tmp_path / "in")
    for name in ("no.md", "no.json", "no.parquet", "no-list/x.txt", "no-search/x.txt"):
        put(tmp_path / "in" / name, "x")
    for name, mode in (("no.md", 0), ("no.json", 0), ("no.parquet", 0), ("no-list", 0), ("no-search", 0o444)):
        (tmp_path / "in" / name).chmod(mode)
    job = {"paths": [str(tmp_path / "in")], "store": str(tmp_path / "store"), "dataset": "d", "tokenizer": "bytes"}
    command = [sys.executable, "-m", "tests.helpers.ingester", "run", json.dumps({**job, "workers": 1})]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    result = json.loads(subprocess.check_output(command, text=True, timeout=120))
    assert result["documents"] == 4
    assert result["skipped"]["unreadable"]["count"] == 5
    assert "no.parquet: Permission denied" in result["skipped"]["unreadable"]["first"]


def test_an_argument_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="nothing to ingest") as caught:
        list_sources([str(tmp_path / "pipe")])
    assert "1 special" in str(caught.value.found)
    for path in ("x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(ConfigError, match="cannot be looked up"):
            list_sources([path])


def put_raw(server: S3Server, bucket: str, key: str, data: bytes) -> None:
    """Put an object under a key as it is, which no client library does (AWS Signature Version 4)."""
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path, scope = quote(f"/{bucket}/{key}"), f"{time[:8]}/{server.region}/s3/aws4_request"
    headers = {
        "host": server.endpoint.removeprefix("http://"),
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-date": time,
    }
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    asked = f"PUT\n{path}\n\n{lines}\n{';'.join(headers)}\nUNSIGNED-PAYLOAD"
    signed = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(asked.encode()).hexdigest()}"
    signing = f"AWS4{server.secret_key}".encode()
    for one in (*scope.split("/"), signed):
        signing = hmac.digest(signing, one.encode(), "sha256")
    credential, names = f"{server.access_key}/{scope}", ";".join(headers)
    words = f"Credential={credential}, SignedHeaders={names}, Signature={signing.hex()}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {words}"
    request = urllib.request.Request(server.endpoint + path, method="PUT", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()


def test_empty_objects_are_counted(s3: S3Server, s3_bucket: str) -> None:
    """A console makes a folder as an empty object under a key with a slash at its end, which no client can ask for."""
    prefix = uuid.uuid4().hex
    for key, data in (("sub/", b""), ("sub/a.md", b"text"), ("folder/", b""), ("empty.md", b"")):
        put_raw(s3, s3_bucket, f"{prefix}/{key}", data)
    listing = list_sources([s3.url(s3_bucket, prefix)])
    assert read_all(listing) == {"sub/a.md": b"text"}
    assert {reason: one["first"] for reason, one in listing.skipped.items()} == {"empty": ["empty.md", "folder", "sub"]}


def test_urls_of_stores(store_url: str) -> None:
    if "://" not in store_url:
        Path(store_url).mkdir()
        store_url = f"file://{store_url}"
    backend = open_store(store_url)
    for name in ("in/a.md", "in/b/c.jsonl", "in/.hidden/x", "out/d.md"):
        backend.put(name, name.encode())
    base, mark, query = store_url.partition("?")
    if base.startswith("memory://"):
        assert names(list_sources([store_url])) == ["in/a.md", "in/b/c.jsonl", "out/d.md"]
        assert read_all(list_sources([store_url]))["in/a.md"] == b"in/a.md"
        assert names(list_sources([f"{base}/**/*.md"])) == ["in/a.md", "out/d.md"]
        return
    folder = list_sources([f"{base}/in{mark}{query}"])
    assert read_all(folder) == {"a.md": b"in/a.md", "b/c.jsonl": b"in/b/c.jsonl"}
    assert folder.skipped["hidden"]["count"] == len(folder.skipped) == 1
    assert names(list_sources([f"{base}/in/a.md{mark}{query}"])) == ["a.md"]
    assert names(list_sources([f"{base}/**/*.md{mark}{query}"])) == ["in/a.md", "out/d.md"]
    both = [f"{base}/in{mark}{query}", f"{base}/out{mark}{query}"]
    assert names(list_sources(both)) == ["in/a.md", "in/b/c.jsonl", "out/d.md"]


def test_wrong_credentials_of_a_source(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(s3_url).put("a.md", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(AccessDenied) as caught:
        list_sources([s3_url])
    assert "wrong-secret" not in str(caught.value)


def test_a_zip_file_through_fsspec(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one/a.md", "text")
        archive.writestr("two.jsonl", "{}")
    listing = list_sources([f"zip://::file://{tmp_path}/a.zip"])
    assert read_all(listing) == {"one/a.md": b"text", "two.jsonl": b"{}"}


def test_large_objects_are_read_by_ranges_in_pieces() -> None:
    memory_url = f"memory://{uuid.uuid4().hex}"
    data = b"".join(b'{"text": "%d"}\n' % i for i in range(1000))
    store = open_store(memory_url)
    store.put("a.jsonl", data)
    file = list_sources([memory_url]).files[0]
    with open_files(memory_url)(file) as opened:
        opened.seek(-10, 2)
        assert opened.read() == data[-10:]
        opened.seek(5)
        assert opened.read(7) == data[5:12]
        assert opened.tell() == 12


def file(source: str, size: int, format: str = "jsonl") -> File:
    return File(source=source, bytes=size, changed=0, format=format, root=0, name=source)


def test_units_gather_small_files_and_divide_big_ones() -> None:
    files = [
        file("a", 10, "text"),
        file("b", 20, "text"),
        file("c", 100, "text"),
        file("d", 350),
        file("e", 5),
        file("f.jsonl.gz", 500),
    ]
    units = list(group(files, 100))
    shapes = [[(work.file.source, work.index, work.of) for work in unit] for unit in units]
    assert shapes == [
        [("a", 0, 1), ("b", 0, 1)],
        [("c", 0, 1)],
        [("d", 0, 3)],
        [("d", 1, 3)],
        [("d", 2, 3)],
        [("e", 0, 1)],
        [("f.jsonl.gz", 0, 1)],
    ]
    assert sum(work.bytes for unit in units for work in unit) == sum(one.bytes for one in files)


def test_the_units_size_follows_the_corpus() -> None:
    def unit_bytes(size: int) -> int:
        listing = Listing(roots=(), files=(file("a", size),), skipped=SkippedInput())
        return make_plan(listing, OPTIONS, None).unit_bytes

    assert [unit_bytes(size) for size in (10, 2**30, 2**40)] == [4 << 20, 32 << 20, 64 << 20]


def test_ids_and_the_heldout_split() -> None:
    assert document_id("a/b.md", 7).hex() == "95c4356a0c6fd312e21cae4cfce1fe57", "ids never change"
    ids = [document_id(f"file-{i}", 0) for i in range(20_000)]
    assert len(set(ids)) == len(ids)
    held = sum(is_heldout(one, 0.05) for one in ids)
    assert 850 < held < 1150, "5 standard deviations around 1000"
    assert not any(is_heldout(one, 0.0) for one in ids)
    assert {one for one in ids if is_heldout(one, 0.01)} <= {one for one in ids if is_heldout(one, 0.05)}
