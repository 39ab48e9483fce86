"""Cases of links, names, permissions and special files."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.odd import plain
from benchmarks.odd.case import Case, files, put

ONE = {"a.txt": plain.text}


def entry(
    kind: str, name: str, make: Callable[[Path], object], documents: tuple[str, ...] = (), /, **left_out: int
) -> Case:
    """A case of entries of a folder, beside a text `a.txt`."""

    def beside(folder: Path) -> None:
        put(folder / "a.txt", b"beside")
        make(folder)

    read = dict.fromkeys(("a.txt", *documents), plain.text)
    return Case(kind=kind, name=name, make=beside, documents=read, left_out=left_out)


def link(place: str, target: str) -> Callable[[Path], None]:
    """Makes a symbolic link in a folder."""

    def make(folder: Path) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).symlink_to(target)

    return make


def outside(folder: Path) -> None:
    """A link to a file that lies beside the root of the job, as a link to /etc/passwd does."""
    put(folder.parents[2] / "outside" / "secret.txt", b"secret")
    (folder / "b.txt").symlink_to(os.path.relpath(folder.parents[2] / "outside" / "secret.txt", folder))
    (folder / "c.txt").symlink_to(folder.parents[2].resolve() / "outside" / "secret.txt")


def through_folder(folder: Path) -> None:
    """A link inside the root that leads over a link outside of it."""
    outside(folder)
    (folder / "d.txt").symlink_to("b.txt")


def hard(folder: Path) -> None:
    """A second name of a file."""
    os.link(folder / "a.txt", folder / "b.txt")


def folder_link(folder: Path) -> None:
    """A link to a folder beside it."""
    put(folder / "real" / "b.txt", b"b")
    (folder / "other").symlink_to("real")


LINKS = [
    entry("link", "to a file beside it", link("b.txt", "a.txt"), ("b.txt",)),
    entry("link", "to a link", lambda f: (link("b.txt", "a.txt")(f), link("c.txt", "b.txt")(f)), ("b.txt", "c.txt")),
    entry("link", "in a folder, upward", link("sub/b.txt", "../a.txt"), ("sub/b.txt",)),
    entry("link", "outside of the root", outside, link=2),
    entry("link", "over a link to the outside", through_folder, link=3),
    entry("link", "to the passwords of the machine", link("b.txt", "/etc/passwd"), link=1),
    entry("link", "to a device", link("b.txt", "/dev/zero"), link=1),
    entry("link", "to nothing", link("b.txt", "gone.txt"), link=1),
    entry("link", "to itself", link("b.txt", "b.txt"), link=1),
    entry("link", "in a circle", lambda f: (link("b.txt", "c.txt")(f), link("c.txt", "b.txt")(f)), link=2),
    entry("link", "below a file", link("b.txt", "a.txt/sub"), link=1),
    entry("link", "to a folder", folder_link, ("real/b.txt",), link=1),
    entry("link", "to the folder above", link("up", ".."), link=1),
    entry("link", "to the own folder", link("here", "."), link=1),
    entry("link", "of a long name", link("b.txt", "x" * 300), link=1),
    entry("link", "with another extension", link("b.jsonl", "a.txt"), broken=1),
    entry("link", "hard", hard, ("b.txt",)),
]


def names(name: str, /, *paths: str, **left_out: int) -> Case:
    """A case of texts with these names."""
    return files("name", name, {path: path.encode() for path in paths}, dict.fromkeys(paths, plain.text), **left_out)


def named(name: str, *paths: str) -> Case:
    """The same, with each path as an argument of its own."""
    case = names(f"as an argument: {name}", *paths)
    return replace(case, paths=paths)


def not_utf8(folder: Path) -> None:
    """Names that are not UTF-8."""
    for path in (b"caf\xe9.txt", b"\xff\xfe.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + path)).write_bytes(b"x")


def folder_not_utf8(folder: Path) -> None:
    """A folder whose name is not UTF-8."""
    below = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    below.mkdir()
    (below / "b.txt").write_bytes(b"x")


def deep(folder: Path) -> None:
    """Folders whose path is longer than the system takes."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("b.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


ODD = ("a b.txt", " a.txt", "a .txt", "100%.txt", "%2e.txt", "a#b.txt", "a?b.txt", "a*b.txt", "a[1].txt", "{a,b}.txt")

NAMES = [
    names("spaces, percent, globs", *ODD),
    names("quotes, dollar, backslash", "'a'.txt", '"b".txt', "$HOME.txt", "`id`.txt", "a\\b.txt", "a;b|c&d.txt"),
    names("newline, tab, carriage return", "a\nb.txt", "a\tb.txt", "a\rb.txt"),
    names("escape sequences", "\x1b[31mred.txt", "a\x07b.txt", "a\x7fb.txt"),
    names("right-to-left marks", "a\u202etxt.txt", "\u200fa.txt", "\u2066b\u2069.txt"),
    names("composed and decomposed", "é.txt", "e\u0301.txt"),
    names("leading dash", "-rf.txt", "--help.txt"),
    names("tilde", "~.txt", "~root.txt"),
    names("255 bytes", "x" * 251 + ".txt", "é" * 125 + "x.txt"),
    names("path of 1,200 bytes", "/".join(["d" * 199] * 6) + "/a.txt"),
    names("astral", "\U0001f600.txt"),
    names("capitals beside small letters", "A.txt", "a.txt", "B/a.txt", "b/a.txt"),
    names("order of bytes", "a.txt", "a-b.txt", "a/b.txt", "a0.txt", "\ue000.txt", "\U00010000.txt"),
    names("scheme", "file:/b.txt", "s3:/bucket/a.txt"),
    names("folders like files", "a.jsonl/b.txt", "c.parquet/d.txt", "e.gz/f.txt"),
    names("dots", "a..txt", "b.c.d.txt", "x/y...txt"),
    entry("name", "not UTF-8", not_utf8, name=2),
    entry("name", "folder not UTF-8", folder_not_utf8, name=1),
    entry("name", "too deep", deep, unreadable=1),
    entry(
        "name",
        "hidden",
        lambda f: (put(f / ".b.txt", b"x"), put(f / ".c/d.txt", b"x"), put(f / "...txt", b"x")),
        hidden=3,
    ),
    entry("name", "version control", lambda f: (put(f / ".git/config", b"x"), put(f / "CVS/Root", b"x")), vcs=2),
    named("globs", "a*b.txt", "[a].txt", "a?b.txt"),
    named("dash and hash", "-a.txt", "#b.txt", "c%20d.txt"),
    named("newline and escape", "a\nb.txt", "\x1b[1m.txt"),
    replace(named("hidden", ".hidden.txt", "b.txt")),
    replace(names("glob", "b.txt", "c.txt"), paths=("*.txt",)),
    replace(names("file twice", "b.txt", "c.txt"), paths=("b.txt", "b.txt", "c.txt", ".")),
    replace(names("missing", "b.txt"), paths=("gone.txt",), ends="no such file"),
    replace(names("glob without a match", "b.txt"), paths=("*.jsonl",), ends="nothing to ingest"),
]


def fifo(folder: Path) -> None:
    """A named pipe."""
    os.mkfifo(folder / "b.txt")


def fifo_link(folder: Path) -> None:
    """A named pipe and a link to it."""
    fifo(folder)
    (folder / "c.txt").symlink_to("b.txt")


def listening(folder: Path) -> None:
    """A socket. Its path is short from within its folder."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("b.txt")
    finally:
        os.chdir(here)


def denied(folder: Path) -> None:
    """A file without the right to read."""
    put(folder / "b.txt", b"x").chmod(0)


def denied_guess(folder: Path) -> None:
    """A file without the right to read, whose first bytes would decide."""
    put(folder / "b.json", b"x").chmod(0)


def denied_table(folder: Path) -> None:
    """A table without the right to read."""
    put(folder / "b.parquet", b"x").chmod(0)


def denied_folder(folder: Path) -> None:
    """A folder without the right to list."""
    put(folder / "sub/b.txt", b"x").parent.chmod(0)


def only_listed(folder: Path) -> None:
    """A folder that can be listed, and whose files cannot be opened."""
    put(folder / "sub/b.txt", b"x").parent.chmod(0o444)


SPECIAL = [
    entry("special", "fifo", fifo, special=1),
    entry("special", "socket", listening, special=1),
    entry("special", "link to a fifo", fifo_link, special=1, link=1),
    entry("special", "empty folder", lambda f: (f / "sub").mkdir()),
    entry("special", "sparse file", lambda f: os.truncate(put(f / "b.txt", b""), 50_000), binary=1),
    entry("permission", "file", denied, unreadable=1),
    entry("permission", "file to guess", denied_guess, unreadable=1),
    entry("permission", "table", denied_table, unreadable=1),
    entry("permission", "folder", denied_folder, unreadable=1),
    entry("permission", "folder without search", only_listed, unreadable=1),
]
