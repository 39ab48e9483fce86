"""Writer of manifests; `manifest.py` describes their format."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from fmscale.errors import DataError
from fmscale.store.datasets.manifest import COLUMNS, HEADER_KEY, SCHEMA, SplitTotals
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.segments.seal import FORMAT_VERSION, SealInfo

BLOCK_ROWS = 16384
"""Segments in a block: 62 blocks and a header of 10 KB for 10^6 segments."""


def encode_manifest(
    rows: Iterable[tuple[int, SealInfo]], *, kind: str, split: str, dtype: str, job: str, folder: str
) -> tuple[str, SplitTotals, bytes]:
    """Digest, totals and file of the manifest of `rows`: a (work unit, seal) per segment, by ascending unit.

    `folder` is the job's folder on the store. Raises DataError for segments out of order or of another
    kind, split or type.
    """
    units: list[int] = []
    seals: list[bytes] = []
    tokens, documents, size = [0], [0], 0
    for unit, seal in rows:
        if (seal.kind, seal.split, seal.dtype) != (kind, split, dtype):
            raise DataError(
                f"The segment of unit {unit} does not belong to a manifest of {(kind, split, dtype)}",
                found=(seal.kind, seal.split, seal.dtype),
                remedy="All segments of one split have one kind and one token type.",
            )
        if units and unit <= units[-1]:
            raise DataError(
                "Segments must come by ascending work unit, each once",
                found=(units[-1], unit),
                remedy="Sort them, and give every unit's segment once.",
            )
        units.append(unit)
        seals.append(bytes.fromhex(seal.digest))
        tokens.append(tokens[-1] + seal.tokens)
        documents.append(documents[-1] + seal.documents)
        size += seal.bytes
    totals = SplitTotals(segments=len(units), tokens=tokens[-1], documents=documents[-1], bytes=size)
    columns = {
        "unit": np.array(units, dtype="<u4"),
        "seal": np.array(seals, dtype="V16"),
        "first_token": np.array(tokens[:-1], dtype="<u8"),
        "first_document": np.array(documents[:-1], dtype="<u8"),
    }
    starts = range(0, totals.segments, BLOCK_ROWS)
    header = canonical_json(
        {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "split": split,
            "dtype": dtype,
            "job": job,
            "folder": folder,
            **asdict(totals),
            "block_rows": BLOCK_ROWS,
            "first_tokens": [tokens[start] for start in starts],
            "first_documents": [documents[start] for start in starts],
            "digests": [
                [metadata_digest(columns[n][start : start + BLOCK_ROWS].tobytes()) for n, _ in COLUMNS]
                for start in starts
            ],
        }
    )
    schema = SCHEMA.with_metadata({HEADER_KEY: header})
    arrays = [
        pa.Array.from_buffers(schema.field(n).type, totals.segments, [None, pa.py_buffer(columns[n].tobytes())])
        for n, _ in COLUMNS
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return metadata_digest(header), totals, sink.getvalue().to_pybytes()
