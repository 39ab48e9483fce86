"""WebDataset tars: a record for consecutive members whose names agree up to the first dot of the base name."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from fmscale.data.ingest.formats import Bad, FilePart, RawRecord

BLOCK = tarfile.BLOCKSIZE


def read(file: BinaryIO, part: FilePart) -> Iterator[RawRecord | Bad]:
    """A record has the key (the name up to the dot) as `__key__` and the bytes of each member under its extension; its
    span is in bytes of the file. Damage ends the reading.
    """
    record: RawRecord | None = None
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # they would gather
                key, extension, fault = _names(member)
                if fault:
                    yield Bad(*fault)
                if not extension or fault:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
                if record and (record.values["__key__"] != key or extension in record.values):
                    yield record
                    record = None
                file.seek(member.offset_data)
                data = file.read(member.size)
                begin, held = (record.start, record.values) if record else (member.offset, {"__key__": key})
                old = record.bytes if record else len(key)
                stop = member.offset_data + member.size
                record = RawRecord({**held, extension: data}, begin, stop, old + len(data))
            end = tar.offset
        file.seek(end)
        if (mark := file.read(BLOCK)).strip(b"\0") or len(mark) < BLOCK:
            # The library takes a damaged header, and the end of a cut file, for the end.
            raise tarfile.ReadError("there is neither a header nor the mark of the end")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if record:
            yield record
        place = f"from byte {record.stop} on: " if record else ""
        yield Bad("broken", f"{place}{str(error)[:200]}")
        return
    if record:
        yield record


def _names(member: tarfile.TarInfo) -> tuple[str, str, tuple[str, str] | None]:
    """Key and extension of a member, or the reason for their lack; folders lack both for no reason."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if member.isdir():
        return "", "", None
    if not member.isreg() or member.issparse():
        return "", "", ("special", f"{member.name!r} is no regular file")
    if member.name.encode(errors="ignore").decode() != member.name:
        return "", "", ("undecodable", f"{member.name!r} is not UTF-8")
    if not stem:
        return "", "", ("hidden", member.name)
    if not extension or extension == "__key__":
        return "", "", ("broken", f"{member.name!r} has no extension that can be a column")
    return f"{folder}{slash}{stem}", extension, None
