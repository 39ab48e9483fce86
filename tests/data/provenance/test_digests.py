"""Digests of samples do not depend on the forward that they are in."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest

from fmscale.data.provenance.digests import digest_of, remade_digest, sample_digests
from fmscale.data.reading.maker import concatenated
from fmscale.data.samples.protocol import NO_SAMPLE, Draw, Part, Record, Sample, TooLong

SIDE = 64
"""Side of a picture, which is also the length of a forward, so that shapes alone do not tell the kinds of parts."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures with captions: crops are drawn, captions cut."""

    kind: ClassVar[str] = "pictures"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("caption",)
    parts: ClassVar[Mapping[str, Part]] = {
        "tokens": Part("int64"),
        "patches": Part("float32", (3,)),
        "picture": Part("uint8", (SIDE, 2), per_token=False),
        "weights": Part("float32"),
    }
    too_long: ClassVar[TooLong] = "cut"
    max_tokens: int = 40

    def size(self, record: Record) -> int:
        return len(record["caption"])

    def decode(self, record: Record) -> Any:
        return np.frombuffer(record["caption"], dtype=np.uint8)

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        tokens = media[:limit]
        n = len(tokens)
        picture = (draw("crop", SIDE * 2) * 256).astype(np.uint8).reshape(SIDE, 2)
        return Sample(
            {"tokens": tokens, "patches": tokens[:, None] / 7, "picture": picture, "weights": np.full(n, 0.5)},
            (n // 3, 0, n - n // 3),
        )


def captions(*lengths: int) -> list[Record]:
    return [{"caption": np.random.default_rng(n).bytes(n)} for n in lengths]


@pytest.mark.parametrize("lengths", [(30,), (5, 40, 1), (60, 3)])
def test_a_sample_has_its_digest_in_any_forward(lengths: tuple[int, ...]) -> None:
    spec, records = Pictures(), captions(*lengths)
    samples = [
        spec.make(spec.decode(record), Draw(5, k), min(spec.size(record), spec.max_tokens))
        for k, record in enumerate(records)
    ]
    samples.insert(1, NO_SAMPLE)
    parts, weights, ends, bounds = concatenated(spec.parts, samples)
    positions = np.concatenate([np.arange(stop - first) for first, stop in pairwise(ends.tolist())])[None]
    found = sample_digests(parts, weights, positions, bounds, {"picture"})
    assert found == [digest_of(spec, sample) for sample in samples]
    assert found.pop(1) == digest_of(spec, NO_SAMPLE)
    assert found == [remade_digest(spec, record, seed=5, k=k, rows=False) for k, record in enumerate(records)]
    assert len({*found, remade_digest(spec, records[0], seed=6, k=0, rows=False)}) == len(found) + 1


@pytest.mark.parametrize("name", ["tokens", "patches", "picture", "weights", "positions"])
def test_every_value_of_a_sample_is_in_its_digest(name: str) -> None:
    spec = Pictures()
    [record] = captions(30)
    parts, weights, _, bounds = concatenated(spec.parts, [spec.make(spec.decode(record), Draw(5, 0), 30)])
    positions = np.arange(weights.size)[None]
    before = sample_digests(parts, weights, positions, bounds, {"picture"})
    {**parts, "weights": weights, "positions": positions}[name].flat[-1 if name == "picture" else 0] += 1
    assert sample_digests(parts, weights, positions, bounds, {"picture"}) != before
    padded = np.flatnonzero(np.arange(weights.size) >= bounds[-1])
    assert padded.size
    now = sample_digests(parts, weights, positions, bounds, {"picture"})
    parts["tokens"][0, padded] = 9
    assert sample_digests(parts, weights, positions, bounds, {"picture"}) == now, "padding is no part of a sample"
