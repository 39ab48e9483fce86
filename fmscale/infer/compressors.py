"""Sizes of the same documents under other compressors, to compare with a model's bits per byte.

gzip and xz read each document alone. `primed_zstd` has a corpus as its dictionary, like a trained model.
"""

import gzip
import lzma
import math
from collections.abc import Callable, Iterable

import zstandard

PRIMED_BYTES = 64 * 2**20
"""Most bytes of a dictionary: zstd's match tables take about 10 times the size of the dictionary in memory."""


def gzip_bytes(text: bytes) -> int:
    """Bytes that `gzip -9` makes of standard input; 18 of them are header and checksum."""
    return len(gzip.compress(text, compresslevel=9, mtime=0))


def xz_bytes(text: bytes) -> int:
    """Bytes that `xz -9` makes of standard input."""
    return len(lzma.compress(text, preset=9))


def primed_zstd(seen: bytes) -> Callable[[bytes], int]:
    """Function from a document to its bytes under zstd -19. The dictionary is the first PRIMED_BYTES of `seen`, the
    text that a model was trained on (RFC 8878; raw content, frames without size and checksum).
    """
    seen = seen[:PRIMED_BYTES]
    window = max(23, len(seen).bit_length() + 1)
    settings = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window, write_content_size=False, write_dict_id=False
    )
    dictionary = zstandard.ZstdCompressionDict(seen, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    dictionary.precompute_compress(compression_params=settings)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings)
    return lambda text: len(compressor.compress(text))


COMPRESSORS: dict[str, Callable[[bytes], int]] = {"gzip": gzip_bytes, "xz": xz_bytes}


def bits_per_byte(texts: Iterable[bytes], compress: Callable[[bytes], int]) -> float:
    """All bits over all bytes, each text compressed alone; NaN without text."""
    bits = size = 0
    for text in texts:
        bits += 8 * compress(text)
        size += len(text)
    return bits / size if size else math.nan
