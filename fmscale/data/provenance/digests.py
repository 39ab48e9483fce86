"""Digests of samples: of a received flat forward, and of a sample that a spec makes again."""

from collections.abc import Mapping, Set
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from fmscale.data.samples.protocol import WEIGHTS, Draw, Record, Sample, Spec


def sample_digests(
    parts: Mapping[str, np.ndarray],
    weights: np.ndarray,
    positions: np.ndarray,
    bounds: np.ndarray,
    per_sample: Set[str] = frozenset(),
) -> list[bytes]:
    """The xxh3_128 of each sample of a forward: over name, type and bytes of its slice of each part, by name, then over
    its positions and weights. `per_sample` names the parts with a value a sample; all others are sliced by `bounds`.
    """
    out = []
    for number, (first, stop) in enumerate(pairwise(bounds.tolist())):
        state = xxhash.xxh3_128()
        for name in sorted(parts):
            part = parts[name][number] if name in per_sample else parts[name][0, first:stop]
            state.update(f"{name} {part.dtype}\n".encode() + part.tobytes())
        state.update(positions[0, first:stop].tobytes() + weights[0, first:stop].tobytes())
        out.append(state.digest())
    return out


def digest_of(spec: Spec, sample: Sample) -> bytes:
    """The digest of a sample in any forward."""
    length, given = sample.length, sample.tensors
    parts = {
        name: _as(given.get(name, 0), part.dtype, (1, *([length] if part.per_token else []), *part.shape))
        for name, part in spec.parts.items()
        if name != WEIGHTS
    }
    weights = _as(given.get(WEIGHTS, 1), "float32", (1, length))
    positions = np.concatenate([np.arange(piece) for piece in (0, *sample.pieces)])[None]
    per_sample = {name for name, part in spec.parts.items() if not part.per_token}
    [digest] = sample_digests(parts, weights, positions, np.array([0, length]), per_sample)
    return digest


def remade_digest(spec: Spec, record: Record, *, seed: int, k: int, rows: bool) -> bytes:
    """The digest of sample k, made again of its record; `rows` tells rows of tokens. Raises the errors of the spec."""
    blank = {"tokens": np.zeros_like(record["tokens"]), "pieces": (len(record["tokens"]),)} if rows else record
    # The limit that a column of sizes gives, where rows of tokens are all of a size, and records may be cut.
    limit, cut = spec.size(blank), None if rows else getattr(spec, "max_tokens", None)
    return digest_of(spec, spec.make(spec.decode(record), Draw(seed, k), limit if cut is None else min(limit, cut)))


def _as(value: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.asarray(value).astype(dtype), shape)
