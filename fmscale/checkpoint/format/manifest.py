"""A checkpoint's manifest: every piece of every logical tensor, whichever rank wrote it.

An Arrow IPC file (`manifest.arrow`) with one row a piece, sorted by tensor and start, so that a binary search
finds the pieces of a range. Its schema metadata has tensors, files, meta and format_version as JSON. The log
entry has the digest of the whole file.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.names import FORMAT_VERSION
from fmscale.checkpoint.format.piece import DTYPES, elements
from fmscale.checkpoint.format.seal import Seal, StoredFile, check_version
from fmscale.errors import CorruptData, FmscaleError, FormatError
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.keys import damaged

COLUMNS = {"tensor": np.int32, "start": np.int64, "count": np.int64, "file": np.int32, "offset": np.int64}
LARGEST = 2**60
"""Bound of every number in a head: no sum or product of the checks overflows."""
_KEY = b"fmscale"


class CheckpointManifest:
    """All pieces of a checkpoint."""

    def __init__(self, head: dict[str, Any], columns: dict[str, np.ndarray], digests: Sequence[str]) -> None:
        """`columns` are sorted by tensor and start."""
        self.head = head
        self.step: int = head["step"]
        self.meta: dict[str, Any] = head["meta"]
        self.rank_meta: list[dict[str, Any] | None] = head["rank_meta"]
        self.tensors = [Tensor(name, state, dtype, tuple(shape)) for name, state, dtype, shape in head["tensors"]]
        self.files = [StoredFile(*file) for file in head["files"]]
        self.columns = columns
        self.digests = digests
        self.number = {(tensor.name, tensor.state): i for i, tensor in enumerate(self.tensors)}
        # First row of each tensor, then the number of rows.
        self._rows = np.searchsorted(columns["tensor"], np.arange(len(self.tensors) + 1))

    def segments(self, tensor: int, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Stored extents of elements [start, start + count) of a tensor, in order: (file, first byte in the file, first
        element, number of elements).
        """
        first, stop = int(self._rows[tensor]), int(self._rows[tensor + 1])
        starts, counts = self.columns["start"], self.columns["count"]
        size = self.tensors[tensor].item_bytes
        row = first + int(np.searchsorted(starts[first:stop], start, side="right")) - 1
        while count:
            skip = start - int(starts[row])
            taken = min(count, int(counts[row]) - skip)
            offset = int(self.columns["offset"][row]) + skip * size
            yield int(self.columns["file"][row]), offset, start, taken
            start, count, row = start + taken, count - taken, row + 1


def merge(seals: Sequence[Seal]) -> CheckpointManifest:
    """Merge all ranks' seals into a manifest. Raises FmscaleError unless they hold each element exactly once."""
    files = {file.key: file for seal in seals for file in seal.files}
    place = {key: number for number, key in enumerate(sorted(files))}
    tensors: dict[tuple[str, str], tuple[int, Tensor]] = {}
    rows: list[tuple[Any, ...]] = []
    for seal in seals:
        for piece in seal.pieces:
            tensor = piece.range.tensor
            number, known = tensors.setdefault((tensor.name, tensor.state), (len(tensors), tensor))
            if known != tensor:
                raise FmscaleError(
                    f"ranks disagree about the tensor {tensor.name} ({tensor.state})",
                    found=f"{known.dtype} {known.shape}, and on rank {seal.rank} {tensor.dtype} {tensor.shape}",
                    remedy="Start all ranks with the same config and the same fmscale.",
                )
            file = place[seal.files[piece.file].key]
            rows.append((number, piece.range.start, piece.range.count, file, piece.offset, piece.digest))
    *values, digests = zip(*rows, strict=True) if rows else ((),) * (len(COLUMNS) + 1)
    columns = {name: np.array(value, dtype) for value, (name, dtype) in zip(values, COLUMNS.items(), strict=True)}
    order = np.lexsort((columns["start"], columns["tensor"]))
    columns = {name: column[order] for name, column in columns.items()}
    head = {
        "format_version": FORMAT_VERSION,
        "step": seals[0].step,
        "folder": seals[0].folder,
        "world_size": len(seals),
        "meta": seals[0].meta or {},
        "rank_meta": [seal.rank_meta for seal in seals],
        "tensors": [tensor for _, tensor in tensors.values()],
        "files": [files[key] for key in place],
    }
    manifest = CheckpointManifest(head, columns, [digests[row] for row in order])
    check_tiling(manifest)
    return manifest


def check_tiling(manifest: CheckpointManifest) -> None:
    """Raise FmscaleError unless the pieces of each tensor follow one another without gap or overlap, each piece lies in
    its file, and no two lie in the same bytes of a file.
    """
    tensor, starts, counts, file, offsets = (manifest.columns[name] for name in COLUMNS)
    infos, files = manifest.tensors, manifest.files
    sizes = np.array([elements(info.shape) for info in infos], dtype=np.int64)
    lost = np.setdiff1d(np.flatnonzero(sizes), tensor)
    if lost.size or ((tensor < 0) | (tensor >= len(infos)) | (file < 0) | (file >= len(files))).any():
        what = f"the pieces are not those of the {len(infos)} tensors and {len(files)} files"
        raise _contradiction(what, infos[lost[0]].name if lost.size else (tensor.tolist()[:4], file.tolist()[:4]))
    if (np.diff(tensor) < 0).any():
        raise _contradiction("the pieces are not sorted by tensor", tensor.tolist()[:8])
    ends = starts + counts
    first, last = np.diff(tensor, prepend=-1) != 0, np.diff(tensor, append=-1) != 0
    wrong = (
        (counts < 0)
        | (ends < starts)
        | (starts != np.where(first, 0, np.roll(ends, 1)))
        | (last & (ends != sizes[tensor]))
    )
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        info = infos[int(tensor[row])]
        found = f"elements {int(starts[row])} to {int(ends[row])} of {elements(info.shape)}"
        raise _contradiction(f"the pieces of {info.name} ({info.state}) leave a gap or overlap", found)
    item = np.array([info.item_bytes for info in infos], dtype=np.int64)[tensor]
    stops = offsets + counts * item
    limits = np.array([stored.bytes for stored in files], dtype=np.int64)[file]
    order = np.lexsort((stops, offsets, file))
    wrong = (offsets < 0) | (offsets > limits) | (stops > limits) | (offsets % item != 0)
    shared = (file[order][1:] == file[order][:-1]) & (offsets[order][1:] < stops[order][:-1])
    wrong[order[1:][shared]] = True
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        info, found = infos[int(tensor[row])], f"bytes {int(offsets[row])} to {int(stops[row])} of {int(limits[row])}"
        raise _contradiction(f"a piece of {info.name} ({info.state}) has no place of its own in its file", found)


def _contradiction(what: str, found: object) -> FmscaleError:
    return FmscaleError(what, found=found, remedy="Each element must be in exactly one rank's pieces.")


def encode(manifest: CheckpointManifest) -> bytes:
    """Encode a manifest as an Arrow IPC file."""
    arrays = {name: pa.array(manifest.columns[name]) for name in COLUMNS}
    digests = pa.array([bytes.fromhex(digest) or None for digest in manifest.digests], pa.binary(16))
    table = pa.table({**arrays, "digest": digests}).replace_schema_metadata({_KEY: canonical_json(manifest.head)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode(data: bytes, digest: str, where: str) -> CheckpointManifest:
    """Decode and check the manifest of object `where`. Raises CorruptData for another digest, or for content that no
    save writes; FormatError for a later version.
    """
    actual = metadata_digest(data)
    if actual != digest:
        raise CorruptData(f"{where} does not have the digest that the log records", found=actual, remedy=damaged(where))
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
        head = json.loads(table.schema.metadata[_KEY])
        check_version(head["format_version"], where)
        if any(table.column(name).null_count for name in COLUMNS):
            raise ValueError("a piece without a place")
        columns = {name: table.column(name).to_numpy().astype(kind, casting="safe") for name, kind in COLUMNS.items()}
        digests = [value.hex() if value else "" for value in table.column("digest").to_pylist()]
        manifest = CheckpointManifest(_checked(head), columns, digests)
        check_tiling(manifest)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"{where} is no manifest", found=repr(error), remedy=damaged(where)) from error
    except FormatError:
        raise
    except FmscaleError as error:
        raise CorruptData(f"{where}: {error.cause}", found=error.found, remedy=damaged(where)) from error
    return manifest


def _checked(head: dict[str, Any]) -> dict[str, Any]:
    """The head of a manifest. Raises ValueError, or an error of wrong types, for a value that no save writes."""
    names = [(name, state) for name, state, _, _ in head["tensors"]]
    sizes = [size for _, _, _, shape in head["tensors"] for size in shape]
    numbers = [head["step"], head["world_size"], *sizes, *(size for _, size, _ in head["files"])]
    texts = [
        *(text for name in names for text in name),
        *(text for key, _, sums in head["files"] for text in (key, sums)),
    ]
    unknown = {dtype for _, _, dtype, _ in head["tensors"]} - DTYPES.keys()
    if (
        unknown
        or len(set(names)) < len(names)
        or not all(type(number) is int and 0 <= number < LARGEST for number in numbers)
        or not all(isinstance(text, str) for text in texts)
        or not all(8 * elements(shape) < LARGEST for _, _, _, shape in head["tensors"])
        or not isinstance(head["meta"], dict)
        or len(head["rank_meta"]) != head["world_size"]
    ):
        raise ValueError(f"a value that no save writes in {canonical_json(head)[:200]!r}")
    return head
