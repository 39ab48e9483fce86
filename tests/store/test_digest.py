from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fmscale.store.digest import (
    DataDigest,
    MetadataDigest,
    canonical_json,
    chunk_checksums,
    crc32c,
    data_digest,
    metadata_digest,
    verify_chunks,
)


def test_published_check_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4 lists the same polynomial
    assert data_digest(b"") == "99aa06d3014798d86001c324468d497f"  # xxHash's own test vector
    assert metadata_digest(b"") == "e3b0c44298fc1c149afbf4c8996fb924"  # FIPS 180-4, first half


@pytest.mark.parametrize(("parts", "whole"), [(DataDigest, data_digest), (MetadataDigest, metadata_digest)])
def test_digest_in_parts_is_that_of_the_whole(parts: Callable[[], Any], whole: Callable[[bytes], str]) -> None:
    digest = parts()
    for part in (b"abcdef" * 999, b"abc", b"def"):
        digest.update(part)
    assert digest.hexdigest()[:32] == whole(b"abcdef" * 1000)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 640, 650])
def test_chunk_checksums_cover_every_byte(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    sums = chunk_checksums(data, 64)
    assert sums.dtype == np.uint32
    assert sums.tolist() == [crc32c(data[i : i + 64]) for i in range(0, size, 64)]
    assert verify_chunks(data, sums, 64) == -1
    for at in range(0, size, 7):
        bad = bytearray(data)
        bad[at] ^= 0x10
        assert verify_chunks(bad, sums, 64) == at // 64


def test_a_buffer_of_another_length_is_bad_where_it_differs() -> None:
    data = bytes(range(256))
    sums = chunk_checksums(data, 64)
    assert verify_chunks(data[:128], sums, 64) == 2
    assert verify_chunks(data[:130], sums, 64) == 2
    assert verify_chunks(data + b"x", sums, 64) == 4
    assert verify_chunks(b"", sums, 64) == 0


def test_buffers_of_any_element_type_are_bytes() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    sums = chunk_checksums(tokens.data, 64)
    assert sums.tolist() == chunk_checksums(tokens.tobytes(), 64).tolist()
    assert verify_chunks(tokens.data, sums, 64) == -1
