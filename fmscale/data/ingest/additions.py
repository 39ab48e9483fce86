"""The files of a listing that a dataset lacks: new files, new ends of files, and, if asked for, new versions.

1. A file gets the source name that the dataset knows it by: that of its place, or else its path below a folder from
   which known names begin.
2. A file with the stamp of its last ingest is known, and is not read.
3. Any other file of a known place or name is read, and the tally of its documents decides: the same (a touched file,
   a copy of a tree), grown at its end, or changed. A file of another place that shares no document with the file of
   its name is another file: its name gets more of its path.
"""

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fmscale.data.ingest.apart import Reading
from fmscale.data.ingest.content import Tally
from fmscale.data.ingest.files import Unreadable
from fmscale.data.ingest.formats import BESIDE, SINGLE
from fmscale.data.ingest.guess import decide
from fmscale.data.ingest.ledger import KnownFile, Ledger
from fmscale.data.ingest.plan import Work
from fmscale.data.ingest.record import FIRST_NAMES
from fmscale.data.ingest.sources import File, Listing, require_files
from fmscale.data.ingest.tally import tally_file
from fmscale.errors import DataError

ADDED, KNOWN, GROWN, REPLACED, CHANGED = "added", "known", "grown", "replaced", "changed"

Group = tuple[File, tuple[File, ...]]
"""A file, and the files beside it, whose content goes into its record."""


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Files to add, and the fate of each listed file."""

    listing: Listing
    """The files to add."""
    fates: Mapping[str, list[str]]
    """Source names by fate: added, known, grown, replaced, or changed and so refused."""
    versions: Mapping[str, tuple[KnownFile, int]] = field(default_factory=dict)
    """Replaced files that are one document: the entry before, and the hash of the content now."""
    moved: tuple[KnownFile, ...] = ()
    """Known files at a new place, or with a new stamp."""

    def refuse_changed(self) -> None:
        """Raise DataError if the content of a known file has changed."""
        if names := self.fates[CHANGED]:
            raise DataError(
                f"{len(names)} file{'s have' if len(names) > 1 else ' has'} another content than the dataset took",
                found=", ".join(names[:FIRST_NAMES]) + (" …" if len(names) > FIRST_NAMES else ""),
                remedy="--replace takes the new content and masks the documents of the old; nothing was done.",
            )


Compare = Callable[[Group, KnownFile], tuple[Tally, Tally]]
"""Tallies of a file, and of its documents that begin where a known file had its own."""


def find_additions(
    listing: Listing,
    ledger: Ledger,
    *,
    path: str,
    shape: str,
    format: str,
    replacing: bool,
    scratch: str,
    notice: Callable[[], object] = lambda: None,
) -> Additions:
    """Compare a listing with the ledger. `path`: field of the text, empty for records. `shape` of messages, empty for
    all else. `format` of all files, or `auto`. With `replacing` a changed file is a new version. `notice` is called
    after each file that was read.
    """
    groups = [_renamed(group, ledger) for group in grouped(listing.files)]
    known = {main.place: entry for main, beside in groups if (entry := _unmoved(main, beside, ledger, path, format))}
    rest = [group for group in groups if group[0].place not in known]
    fresh = replace(listing, files=flat(rest))
    if rest and format == "auto":
        fresh = decide(fresh, path or None)
    if not known:
        require_files(fresh.files, [root.url for root in listing.roots], fresh.skipped)
    fates: dict[str, list[str]] = {fate: [] for fate in (ADDED, KNOWN, GROWN, REPLACED, CHANGED)}
    if not ledger.files:
        fates[ADDED] = [main.source for main, _ in grouped(fresh.files)]
        return Additions(listing=fresh, fates=fates)
    fates[KNOWN] = [entry.source for entry in known.values()]
    with (
        TemporaryDirectory(prefix="compared-", dir=scratch) as folder,
        closing(Reading([root.url for root in listing.roots], path or None)) as reading,
    ):

        def compare(group: Group, entry: KnownFile) -> tuple[Tally, Tally]:
            reading.max_document = entry.max_document
            work = Work(file=group[0], index=0, of=1, beside=group[1])
            tallies = tally_file(reading, work, Path(folder), entry.tally.stop, shape)
            notice()
            return tallies

        return _sort(fresh, listing, ledger, fates, compare, path, replacing)


def grouped(files: Iterable[File]) -> list[Group]:
    """Files with the files beside them."""
    groups: list[Group] = []
    for file in files:
        if file.format == BESIDE:
            groups[-1] = (groups[-1][0], (*groups[-1][1], file))
        else:
            groups.append((file, ()))
    return groups


def flat(groups: Iterable[Group]) -> tuple[File, ...]:
    """The files of groups in order."""
    return tuple(file for main, beside in groups for file in (main, *beside))


def stamp(main: File, beside: Iterable[File]) -> str:
    """The stamp of a file with those beside it; empty if a store gives none."""
    parts = [main.stamp, *(f"{file.name.rpartition('.')[2]} {file.stamp}" for file in beside)]
    return " | ".join(parts) if main.stamp else ""


def _sort(
    fresh: Listing,
    listing: Listing,
    ledger: Ledger,
    fates: dict[str, list[str]],
    compare: Compare,
    path: str,
    replacing: bool,
) -> Additions:
    """The fate of each file without a known stamp."""
    taken = set(fates[KNOWN])
    chosen: list[Group] = []
    versions: dict[str, tuple[KnownFile, int]] = {}
    moved: list[KnownFile] = []
    trees: set[str] = set()
    gone = _Gone(ledger, listing)
    # Files at known places come first, so that no file of another place takes their names. Changed files come last,
    # when it is known which files were renamed, and which trees are copies of the tree that the dataset was made of.
    queue = sorted(grouped(fresh.files), key=lambda group: group[0].place not in ledger.places)
    changed: dict[str, Tally] = {}
    for group in queue:
        main, beside = group
        entry = ledger.places.get(main.place) or ledger.files.get(main.source) or _listed(main, ledger)
        fate, tally = ADDED, Tally()
        if entry is None or entry.source in taken:
            entry = gone.same(group, taken, compare)
            fate = KNOWN if entry else ADDED
        elif main.place in changed:
            fate, tally = CHANGED, changed[main.place]
            if main.place not in (entry.place, "") and entry.place and _tree(main, entry) not in trees:
                entry, fate = None, ADDED
        else:
            try:
                fate, tally = _fate(group, entry, compare, path)
            except Unreadable as error:
                fresh.skipped.add("unreadable", f"{main.source}: {error}")
                continue
            if fate == CHANGED:
                changed[main.place] = tally
                gone.places.add(entry.place)
                if set(tally.sketch) & set(entry.tally.sketch):
                    trees.add(_tree(main, entry))
                queue.append(group)
                continue
            trees.add(_tree(main, entry))
        if fate == CHANGED and replacing:
            fate = REPLACED
        source = entry.source if entry else _free(main, ledger.files, taken)
        taken.add(source)
        fates[fate].append(source)
        if fate == KNOWN and entry and not entry.listed:
            moved.append(replace(entry, **_state(main, beside), begin=entry.tally.stop, tally=_nothing(entry)))
        elif fate in (ADDED, GROWN, REPLACED):
            begin = entry.tally.stop if entry and fate == GROWN else 0
            chosen.append((replace(main, source=source, begin=begin), beside))
        if fate == REPLACED and entry and main.format in SINGLE and tally.documents:
            versions[source] = (entry, tally.sketch[0])
    files = flat(sorted(chosen, key=lambda group: group[0].source))
    return Additions(listing=replace(fresh, files=files), fates=fates, versions=versions, moved=tuple(moved))


def _tree(main: File, entry: KnownFile) -> str:
    """The folder from which the file has the name that the dataset knows."""
    return main.place.removesuffix(entry.source)


def _fate(group: Group, entry: KnownFile, compare: Compare, path: str) -> tuple[str, Tally]:
    """The fate of a file that the dataset may know as `entry`, and its tally."""
    main, _ = group
    if entry.listed:
        same = (main.bytes, main.changed, path) == (entry.bytes, entry.changed, entry.field)
        if same or main.format not in SINGLE:
            return KNOWN if same else CHANGED, Tally()
        return CHANGED, compare(group, entry)[0]
    whole, first = compare(group, entry)
    if not entry.whole:
        return CHANGED, whole
    if whole.same(entry.tally):
        return KNOWN, whole
    grown = first.same(entry.tally) and (main.format not in SINGLE or not first.documents)
    return GROWN if grown else CHANGED, whole


def _unmoved(main: File, beside: Sequence[File], ledger: Ledger, path: str, format: str) -> KnownFile | None:
    """The entry of a file that has its stamp of then, and would be read as it was then."""
    entry = ledger.places.get(main.place)
    if entry is None or not entry.whole or not entry.stamp or entry.stamp != stamp(main, beside):
        return None
    read_alike = format in ("auto", entry.format) and (entry.field == path or entry.format == "text")
    return entry if read_alike and entry.bytes == main.bytes else None


def _renamed(group: Group, ledger: Ledger) -> Group:
    """The files under the names that the dataset has, or would have, for their places."""
    main, beside = group
    entry = ledger.places.get(main.place)
    base = ""
    if entry is None:
        ends = (i + 1 for i in range(len(main.place) - 1, 0, -1) if main.place[i] == "/")
        base = next((main.place[:end] for end in ends if main.place[:end] in ledger.bases), "")
    if entry is None and not base:
        return group
    source = entry.source if entry else main.place[len(base) :]
    return replace(main, source=source), beside


def _free(main: File, *used: Container[str]) -> str:
    """The file's name, with as much of its path as makes it a new name."""
    parts = main.place.split("/")
    for count in range(main.source.count("/") + 1, len(parts) + 1):
        name = "/".join(parts[-count:])
        if not any(name in names for names in used):
            return name
    return main.place


def _listed(main: File, ledger: Ledger) -> KnownFile | None:
    """The entry of a commit from before the ledger, which was listed from another folder."""
    for entry in ledger.listed.get((main.bytes, main.changed), ()):
        if f"/{entry.source}".endswith(f"/{main.source}") or f"/{main.place}".endswith(f"/{entry.source}"):
            return entry
    return None


class _Gone:
    """Known files that are no longer where they were: a file with the documents of one has been renamed."""

    def __init__(self, ledger: Ledger, listing: Listing) -> None:
        self._by_size: dict[int, list[KnownFile]] = {}
        for entry in ledger.places.values():
            if entry.tally.documents and entry.whole:
                self._by_size.setdefault(entry.bytes, []).append(entry)
        self._listed = {file.place for file in listing.files}
        self._roots = [f"{root.place}/" for root in listing.roots if not (root.pattern or root.only)]
        self.places: set[str] = set()
        """Places that hold other content now."""

    def same(self, group: Group, taken: Container[str], compare: Compare) -> KnownFile | None:
        """The known file with the documents of this one, if its own place is empty now."""
        candidates = [e for e in self._by_size.get(group[0].bytes, ()) if e.source not in taken and self._is_gone(e)]
        if not candidates:
            return None
        with suppress(Unreadable):
            return next((entry for entry in candidates if entry.tally.same(compare(group, entry)[0])), None)
        return None

    def _is_gone(self, entry: KnownFile) -> bool:
        if entry.place in self._listed:
            return entry.place in self.places
        path = entry.place.removeprefix("file/")
        seen = any(entry.place.startswith(root) for root in self._roots)
        return seen or (path != entry.place and not os.path.lexists(path))


def _state(main: File, beside: Sequence[File]) -> dict[str, Any]:
    return {"place": main.place, "stamp": stamp(main, beside), "bytes": main.bytes, "changed": main.changed}


def _nothing(entry: KnownFile) -> Tally:
    """The tally of no further documents."""
    return Tally(stop=entry.tally.stop)
