"""Writers of segments: scratch files of one work unit and one split, then the store, the seal last."""

import hashlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import MetadataDigest
from fmscale.store.segments.array import ArraySpec, encode_group
from fmscale.store.segments.array_writer import scratch_errors
from fmscale.store.segments.seal import SealInfo, store_segment


class SegmentWriter(ABC):
    """Gathers a segment in a folder of its own below `scratch`; `finish` stores it, sealed.

    `finish` and `discard` (or the end of a `with` block) remove the folder. Raises StoreFull if `scratch` has no
    space, and the store's errors.
    """

    def __init__(self, scratch: Path, prefix: str) -> None:
        with scratch_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch))

    def finish(self, backend: Backend, prefix: str) -> SealInfo:
        """Store everything under `prefix` and seal it; durable when this returns.

        Raises Conflict if the segment is sealed there already with other content; stores nothing if it is
        sealed with the same content. The scratch files are gone afterwards, also after an error.
        """
        try:
            keys, seal = self._complete()
            return store_segment(backend, prefix, {key: self._folder / key for key in keys}, seal)
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop the segment's content and its scratch files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    @abstractmethod
    def _complete(self) -> tuple[list[str], dict[str, Any]]:
        """Complete the files; returns their keys and the seal."""

    def _seal(
        self,
        seal: dict[str, Any],
        specs: Sequence[ArraySpec],
        schema: pa.Schema,
        firsts: Sequence[int],
        file_sums: Sequence[int] = (),
    ) -> tuple[list[str], dict[str, Any]]:
        """Write the group and checksums.arrow, under `schema`, beside the arrays and the table of documents: the
        checksums of files and of the arrays, and `firsts` beside those of the first array. Returns the keys of all
        these, and `seal` with the arrays and objects.
        """
        sums = np.concatenate([np.array(file_sums, dtype=np.uint32), *(spec.crc32c for spec in specs)])
        first = np.zeros(len(sums), dtype=np.uint32)
        first[len(file_sums) : len(file_sums) + len(firsts)] = firsts
        group = encode_group({"fmscale": {name: seal[name] for name in ("format_version", "kind")}})
        path = self._folder / "checksums.arrow"
        with scratch_errors(path):
            (self._folder / "zarr.json").write_bytes(group)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(pa.record_batch([pa.array(sums), pa.array(first)], schema=schema))
        keys = ["zarr.json", "documents.arrow", "checksums.arrow", *(f"{spec.name}/zarr.json" for spec in specs)]
        arrays = {s.name: {**asdict(s.layout), "shards": [asdict(shard) for shard in s.shards]} for s in specs}
        seal = {**seal, "arrays": arrays, "objects": {key: self._entry(key) for key in keys}}
        return [*keys, *(shard.key for spec in specs for shard in spec.shards)], seal

    def _entry(self, key: str) -> dict[str, Any]:
        """Size and `metadata_digest` of a file, as the seal records an object."""
        path = self._folder / key
        with scratch_errors(path), path.open("rb") as file:
            digest = hashlib.file_digest(file, MetadataDigest)
            return {"bytes": file.tell(), "digest": digest.hexdigest()[:32]}
