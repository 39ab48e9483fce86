"""The inputs: paths, folders, globs and URLs become one sorted listing of files.

The listing of a folder passes over and counts by reason: hidden files and folders, folders of version control, files
with the extension of a binary format, links to anything but files below the folder (a link to a folder could lead in
circles, and a link to /etc/passwd would make it a document), special files, entries that cannot be read, empty objects
(an S3 console's folders are empty objects), the descriptions and caches in a folder that Hugging Face's `save_to_disk`
wrote, and the store itself. An argument that
names a file takes it even if it is hidden. A job that keeps records takes tars and media files, and passes over texts
but those beside a media file, which follow it in the listing.

A file's *source name* is its path below the deepest folder that all arguments share: moving or copying the
whole tree changes no name, and so no document id.
"""

import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cache
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

from fmscale.data.ingest.formats import BESIDE, detect
from fmscale.data.ingest.formats.media import COMPANIONS
from fmscale.data.ingest.record import SkippedInput
from fmscale.errors import ConfigError, DataError, ObjectNotFound, StoreError
from fmscale.store.keys import check_key
from fmscale.store.open import open_store, parse_url

VERSION_CONTROL = frozenset({"CVS", "_darcs", "RCS", "SCCS", ".git", ".hg", ".svn", ".bzr", ".jj"})
"""Folders of version control."""

GLOB = re.compile(r"[*\[?]")

USER = re.compile(r"//[^/@]*@")
"""User and password in the address of a server."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """Folder of an argument's files, and the choice among its files."""

    url: str
    """Folder of this machine (an absolute path), or a store's URL."""
    pattern: str = ""
    """Glob below the folder, in which `**` crosses folders; empty means everything."""
    only: str = ""
    """Name of the only file, or empty."""

    @property
    def segments(self) -> tuple[str, ...]:
        """Names of the folder from the top, to find the folder that arguments share."""
        if "://" not in self.url:
            return ("file", *Path(self.url).parts)
        place = parse_url(self.url)
        server = f"{place.scheme}:{place.options.get('endpoint', '')}"
        return (server, place.bucket, *filter(None, place.prefix.split("/")))

    @property
    def place(self) -> str:
        """The folder without the options of a URL."""
        return USER.sub("//", "/".join(part.rstrip("/") for part in self.segments))


@dataclass(frozen=True, kw_only=True)
class File:
    """An input file."""

    source: str
    bytes: int
    """Size at the listing."""
    changed: int
    """Time of the last change in milliseconds, by the clock of its store or file system."""
    format: str
    """text, jsonl, json, parquet, arrow, tar, media or beside; empty until its first bytes decide."""
    root: int
    """Number of its argument's root."""
    name: str
    """Path below that root's folder."""
    place: str = ""
    """URL without options."""
    stamp: str = ""
    """Identity of its state: inode and times of a local file, the ETag of an object; empty if neither is known."""
    begin: int = 0
    """Place behind the documents that the dataset has of it."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All input files in order of their source names."""

    roots: tuple[Root, ...]
    files: tuple[File, ...]
    skipped: SkippedInput
    guessed: SkippedInput = field(default_factory=SkippedInput)
    """Files whose first bytes decided the format, by format."""


def list_sources(arguments: Sequence[str], *, format: str = "auto", store: str = "", kind: str = "text") -> Listing:
    """List the files of the arguments; a file of several arguments is listed once. `kind`: text or records.

    The listing passes over `store`, the folder of a local store. Raises ConfigError for a path that does not exist,
    DataError if no file is left, and the errors of stores.
    """
    roots = tuple(dict.fromkeys(_parse_argument(argument) for argument in sorted(set(arguments))))
    levels = zip(*(root.segments for root in roots), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    skipped = SkippedInput()
    files: dict[str, File] = {}
    for number, root in enumerate(roots):
        before = "/".join(part.strip("/") for part in root.segments[shared:])
        place = root.place
        walk = _walk_local if "://" not in root.url else _walk_store
        for name, size, changed, stamp in walk(root, skipped, store):
            source = f"{before}/{name}" if before else name
            found = detect(source, kind)
            if found == "binary" and not root.only:
                skipped.add("binary", source)
                continue
            if format != "auto":
                found = format
            elif found == "binary":
                found = ""
            file = File(
                source=source,
                bytes=size,
                changed=changed,
                format=found,
                root=number,
                name=name,
                place=f"{place}/{name}",
                stamp=stamp,
            )
            files.setdefault(source, file)
    for source in _metadata(files):
        if not roots[files[source].root].only:
            skipped.add("metadata", source)
            del files[source]
    ordered = tuple(_ordered(files))
    require_files(ordered, arguments, skipped)
    return Listing(roots=roots, files=ordered, skipped=skipped)


def require_files(files: Sequence[File], arguments: Sequence[str], skipped: SkippedInput) -> None:
    """Raise DataError for an empty list."""
    if not files:
        raise DataError(
            "There is nothing to ingest",
            found=f"{', '.join(arguments)} (skipped: {skipped.counted() or 'nothing'})",
            remedy="Name files or folders that hold text, JSON, Parquet or Arrow; --as records takes tars and media.",
        )


def _ordered(files: Mapping[str, File]) -> Iterator[File]:
    """The files by name, each media file before the texts beside it."""
    media = {source.rpartition(".")[0] for source, file in files.items() if file.format == "media"}
    for source in sorted(files):
        stem, _, extension = source.rpartition(".")
        if extension in COMPANIONS and stem in media:
            continue
        yield files[source]
        if files[source].format == "media":
            names = [f"{stem}.{extension}" for extension in COMPANIONS]
            yield from (replace(files[name], format=BESIDE) for name in names if name in files)


def _metadata(files: Mapping[str, File]) -> list[str]:
    """Descriptions and caches that Hugging Face's `save_to_disk` puts beside its Arrow files."""
    tables = {source.rpartition("/")[0] for source in files if source.endswith(".arrow")}
    folders = {folder for folder in tables if posixpath.join(folder, "dataset_info.json") in files}
    above = {folder.rpartition("/")[0] for folder in folders if folder}
    metadata: list[str] = []
    for source in sorted(files):
        folder, _, name = source.rpartition("/")
        cache = name.startswith("cache-") and name.endswith(".arrow")
        beside = folder in folders and (cache or name in ("dataset_info.json", "state.json"))
        if beside or (folder in above and name == "dataset_dict.json"):
            metadata.append(source)
    return metadata


def _parse_argument(argument: str) -> Root:
    """The root of an argument. Raises ConfigError for a path that does not exist."""
    if argument.startswith("file://"):
        argument = parse_url(argument).bucket
    if "://" in argument:
        return _parse_url_argument(argument)
    try:
        path = Path(argument).expanduser()
        if path.is_dir():
            return Root(url=str(path.resolve()))
        if path.exists():
            return Root(url=str(path.parent.resolve()), only=path.name)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        raise ConfigError("A path cannot be looked up", found=f"{argument}: {error}", remedy="Check it.") from error
    folder, pattern = _split_glob(path.parts)
    if not pattern:
        raise ConfigError("There is no such file or folder", found=argument, remedy="Check the path; globs are quoted.")
    return Root(url=str(Path(*folder).resolve()), pattern="/".join(pattern))


def _split_glob(parts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The names before the first glob, and the names from that glob on."""
    first = next((i for i, part in enumerate(parts) if GLOB.search(part)), len(parts))
    return parts[:first], parts[first:]


def _parse_url_argument(argument: str) -> Root:
    """The root of a store's URL: a glob, an object, or else a folder. `?` begins the options and is no wildcard."""
    path, mark, query = argument.partition("?")
    scheme, _, rest = path.partition("://")
    parts = rest.rstrip("/").split("/")
    above, pattern = _split_glob(parts)
    if "::" in argument:
        return Root(url=argument)
    if pattern:
        return Root(url=f"{scheme}://{'/'.join(above)}{mark}{query}", pattern="/".join(pattern))
    if len(parts) > 1 and parts[-1]:
        folder = f"{scheme}://{'/'.join(parts[:-1])}{mark}{query}"
        with suppress(ObjectNotFound):
            if urlsplit(folder).netloc and open_store(folder, read_only=True).exists(parts[-1]):
                return Root(url=folder, only=parts[-1])
    return Root(url=argument)


Entries = Iterator[tuple[str, int, int, str]]
"""Name below the root, bytes, time of change in milliseconds, stamp."""


def _walk_local(root: Root, skipped: SkippedInput, store: str) -> Entries:
    if root.only:
        status = os.stat(os.path.join(root.url, root.only))
        if stat.S_ISREG(status.st_mode):
            yield root.only, *_state(status)
        else:
            skipped.add("special", root.only)
        return
    match = _matcher(root.pattern)
    folders = [""]
    while folders:
        folder = folders.pop()
        below: list[str] = []
        for entry in _entries(root.url, folder, skipped):
            name = folder + entry.name
            try:
                reason = _reason(entry, root.url, store)
                if reason:
                    skipped.add(reason, _shown(name))
                elif entry.is_dir(follow_symlinks=False):
                    below.append(f"{name}/")
                elif match(name):
                    yield name, *_state(entry.stat())
            except OSError as error:
                skipped.add("unreadable", f"{_shown(name)}: {error.strerror}")
        folders.extend(reversed(below))


def _state(status: os.stat_result) -> tuple[int, int, str]:
    """Bytes, time of change and stamp of a local file. The inode's time cannot be set back, as the file's time can.

    A file system that counts whole seconds gives no stamp: a file could change twice in one.
    """
    coarse = status.st_ctime_ns % 1_000_000_000 == 0
    stamp = "" if coarse else f"{status.st_ino}.{status.st_mtime_ns}.{status.st_ctime_ns}"
    return status.st_size, status.st_mtime_ns // 1_000_000, stamp


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _entries(root: str, folder: str, skipped: SkippedInput) -> list[os.DirEntry[str]]:
    """Entries of a folder; a folder below the root that cannot be listed is counted."""
    path = os.path.join(root, folder)
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        if folder:
            skipped.add("unreadable", f"{folder}: {error.strerror}")
            return []
        raise DataError(
            f"A folder of the input cannot be listed: {error.strerror}",
            found=path,
            remedy="Give this user the right to read it, or leave it out.",
        ) from error


def _reason(entry: os.DirEntry[str], root: str, store: str) -> str:
    """Reason to pass over an entry of a folder; empty to take it."""
    if entry.name.encode(errors="ignore").decode() != entry.name:
        return "name"
    if reason := _hidden(entry.name):
        return reason
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        inside = _is_below(target, root) and not (store and _is_below(target, store))
        return "" if inside and os.path.isfile(target) else "link"
    if store and entry.is_dir() and os.path.realpath(entry.path) == store:
        return "store"
    return "" if entry.is_dir() or entry.is_file() else "special"


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _hidden(name: str) -> str:
    if name in VERSION_CONTROL:
        return "vcs"
    return "hidden" if name.startswith(".") else ""


def _walk_store(root: Root, skipped: SkippedInput, store: str) -> Entries:
    backend = open_store(root.url, read_only=True)
    if root.only:
        info = backend.head(root.only)
        yield root.only, info.bytes, round(info.modified * 1000), info.etag
        return
    match = _matcher(root.pattern)
    for info in backend.list_objects():
        hidden = next(filter(None, map(_hidden, info.key.split("/"))), "")
        if hidden:
            skipped.add(hidden, info.key)
        elif match(info.key) and not info.bytes:
            skipped.add("empty", info.key or "/")
        elif not _is_key(info.key):
            skipped.add("name", info.key)
        elif match(info.key):
            yield info.key, info.bytes, round(info.modified * 1000), info.etag


def _is_key(name: str) -> bool:
    try:
        check_key(name)
    except StoreError:
        return False
    return True


def _matcher(pattern: str) -> Callable[[str], bool]:
    """A function that tests a name by a glob: `**` stands for any number of folders, `*` stays in a folder."""
    parts = tuple(pattern.split("/"))
    return (lambda name: _matches(tuple(name.split("/")), parts)) if pattern else (lambda _: True)


def _matches(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[i:], parts[1:]) for i in range(len(names) + (parts[1:] == ())))
    return bool(names) and bool(_compiled(parts[0]).match(names[0])) and _matches(names[1:], parts[1:])


@cache
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))
