"""WebDataset tars: a record for consecutive members whose names agree up to the first dot of the base name."""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
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
                    yield fault
                if not extension:
                    continue
                stop = member.offset_data + member.size
                if stop > size:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
                if record and (record.values["__key__"] != key or extension in record.values):
                    yield _short(record, part)
                    record = None
                record = record or RawRecord({"__key__": key}, member.offset, stop, len(key))
                record = replace(record, stop=stop, bytes=record.bytes + member.size)
                if record.bytes > part.max_document:
                    record.values.update(dict.fromkeys(record.values.keys() - {"__key__"} | {extension}, b""))
                    continue
                file.seek(member.offset_data)
                record.values[extension] = file.read(member.size)
            end = tar.offset
        file.seek(end)
        if (mark := file.read(BLOCK)).strip(b"\0") or len(mark) < BLOCK:
            # The library takes a damaged header, and the end of a cut file, for the end.
            raise tarfile.ReadError("there is neither a header nor the mark of the end")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if record:
            yield _short(record, part)
        place = f"from byte {record.stop} on: " if record else ""
        yield Bad("broken", f"{place}{str(error)[:200]}")
        return
    if record:
        yield _short(record, part)


def _short(record: RawRecord, part: FilePart) -> RawRecord | Bad:
    return record if record.bytes <= part.max_document else part.too_long(record.values["__key__"])


def _names(member: tarfile.TarInfo) -> tuple[str, str, Bad | None]:
    """Key and extension of a member, or the reason for their lack; folders lack both for no reason."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if member.isdir():
        return "", "", None
    if member.name.encode(errors="ignore").decode() != member.name:
        return "", "", Bad("undecodable", f"{member.name!r} is not UTF-8")
    if not member.isreg() or member.issparse():
        return "", "", Bad("special", f"{member.name!r} is no regular file")
    if not stem or not extension or extension == "__key__":
        return "", "", Bad("broken" if stem else "hidden", f"{member.name!r} has no extension that can be a column")
    return f"{folder}{slash}{stem}", extension, None
