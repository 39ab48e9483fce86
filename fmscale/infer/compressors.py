"""Other compressors on the same documents, each compressed alone: what a model's bits per byte are compared with."""

import gzip
import lzma
import math
from collections.abc import Callable, Iterable


def gzip_bytes(text: bytes) -> int:
    """Bytes that `gzip -9` makes of standard input; 18 of them are header and checksum."""
    return len(gzip.compress(text, compresslevel=9, mtime=0))


def xz_bytes(text: bytes) -> int:
    """Bytes that `xz -9` makes of standard input."""
    return len(lzma.compress(text, preset=9))


COMPRESSORS: dict[str, Callable[[bytes], int]] = {"gzip": gzip_bytes, "xz": xz_bytes}


def bits_per_byte(texts: Iterable[bytes], compress: Callable[[bytes], int]) -> float:
    """All bits over all bytes, each text compressed alone; NaN without text."""
    bits = size = 0
    for text in texts:
        bits += 8 * compress(text)
        size += len(text)
    return bits / size if size else math.nan
