"""Pictures in files, as RGB of 8 bits: PNG, and PPM, PGM and PAM of Netpbm. zlib and numpy are all that is needed.

`read_header` looks at the first bytes alone. `read_pixels` flattens transparency onto white and turns a picture as its
EXIF says. Of an animation it takes the first frame, the image that a PNG shows where animations are unknown.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fmscale.data.samples.protocol import BadRecord

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of each colour type of PNG."""
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
TUPLES = {b"GRAYSCALE": 1, b"RGB": 3, b"GRAYSCALE_ALPHA": 2, b"RGB_ALPHA": 4, b"CMYK": 4}
"""Channels of each tuple type of PAM."""
ORIENTATION = 0x0112


class Header(NamedTuple):
    """The beginning of a file."""

    width: int
    height: int
    depth: int
    """Bits of a sample."""
    colour: int | bytes
    """Colour type of PNG, or tuple type of PAM."""
    start: int
    """Offset of the first chunk or sample behind it."""


def read_header(data: bytes) -> Header:
    """The header of a file, without a look at its pixels. Raises BadRecord."""
    if data.startswith(SIGNATURE):
        header = _png_header(data)
    elif data[:2] in (b"P5", b"P6", b"P7"):
        header = _netpbm_header(data)
    else:
        raise refusal("the record is no picture that can be read", data[:8], "Convert it to PNG or PAM.")
    if not header.width or not header.height:
        raise refusal("the picture has no pixels", (header.width, header.height), "Leave it out.")
    return header


def read_pixels(data: bytes) -> np.ndarray:
    """uint8 [height, width, 3]. Raises BadRecord for damage of any kind."""
    header = read_header(data)
    return _png_pixels(data, header) if isinstance(header.colour, int) else _netpbm_pixels(data, header)


def refusal(cause: str, found: object, remedy: str) -> BadRecord:
    """The error of a picture that cannot be used."""
    return BadRecord(cause, found=found, remedy=remedy)


def _damage(what: str, found: object) -> BadRecord:
    return refusal(f"the picture is damaged: {what}", found, "Take a whole copy of the file, and ingest it again.")


def _png_header(data: bytes) -> Header:
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise _damage("its header is cut off", f"{len(data)} bytes")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        raise _damage("its header does not match its checksum", data[12:29].hex())
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", data[16:29])
    if depth not in DEPTHS.get(colour, ()):
        raise _damage("its header has no such type", f"colour type {colour} of {depth} bits")
    if any(methods):
        raise refusal("the picture is interlaced", methods, "Write it again without interlacing.")
    return Header(width, height, depth, colour, 33)


def _png_pixels(data: bytes, header: Header) -> np.ndarray:
    parts, palette, alpha, turn = list[bytes](), b"", b"", 1
    for name, content in _chunks(data, header.start):
        if name == b"IDAT":
            parts.append(content)
        elif name == b"PLTE":
            palette = content
        elif name == b"tRNS":
            alpha = content
        elif name == b"eXIf":
            turn = _orientation(content)
    channels = CHANNELS[int(header.colour)]
    line = -(-header.width * channels * header.depth // 8)
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(b"".join(parts), header.height * (line + 1))
    except zlib.error as error:
        raise _damage("its pixels cannot be decompressed", str(error)) from None
    if len(raw) < header.height * (line + 1):
        raise _damage("pixels are missing", f"{len(raw)} bytes of {header.height * (line + 1)}")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(header.height, line + 1)
    lines = _unfiltered(rows[:, 1:], rows[:, 0], max(1, channels * header.depth // 8))
    values = _samples(lines, header.width * channels, header.depth).reshape(header.height, header.width, channels)
    if header.colour == 3:
        return turned(_painted(values[..., 0], palette, alpha), turn)
    key = np.frombuffer(alpha, dtype=">u2") if alpha else None
    opaque = None if key is None or len(key) != channels else (values != key).any(-1, keepdims=True)
    values = to_bytes(values, 2**header.depth - 1)
    if opaque is not None:
        values = np.concatenate((values, np.where(opaque, 255, 0).astype(np.uint8)), -1)
    return turned(on_white(values), turn)


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk. Raises BadRecord unless all are whole and the last is IEND."""
    while at + 12 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        content, sum_ = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if len(sum_) < 4:
            break
        if zlib.crc32(name + content) != int.from_bytes(sum_):
            raise _damage("a chunk does not match its checksum", f"{name!r} at byte {at}")
        if name == b"IEND":
            return
        yield name, content
        at += 12 + size
    raise _damage("its end is cut off", f"{len(data)} bytes")


def _unfiltered(lines: np.ndarray, kinds: np.ndarray, step: int) -> np.ndarray:
    """Rows of bytes without PNG's filters; `step` is the distance to the byte on the left."""
    if (kinds > 4).any():
        raise _damage("a row has no such filter", int(kinds.max()))
    out = np.zeros((len(lines) + 1, lines.shape[1] + step), dtype=np.uint8)
    for y, kind in enumerate(kinds.tolist(), 1):
        line, above = lines[y - 1], out[y - 1]
        if kind == 1:
            for first in range(step):
                out[y, step + first :: step] = np.cumsum(line[first::step], dtype=np.uint8)
        elif kind == 2:
            out[y, step:] = line + above[step:]
        elif kind == 0:
            out[y, step:] = line
        else:
            row, up = out[y].tolist(), above.tolist()
            for x, value in enumerate(line.tolist(), step):
                left, top, corner = row[x - step], up[x], up[x - step]
                row[x] = (value + ((left + top) // 2 if kind == 3 else _paeth(left, top, corner))) % 256
            out[y] = row
    return out[1:, step:]


def _paeth(left: int, top: int, corner: int) -> int:
    p = left + top - corner
    a, b, c = abs(p - left), abs(p - top), abs(p - corner)
    return left if a <= b and a <= c else top if b <= c else corner


def _samples(lines: np.ndarray, count: int, depth: int) -> np.ndarray:
    """The `count` samples of each row of bytes."""
    if depth == 16:
        return np.ascontiguousarray(lines).view(">u2")
    if depth == 8:
        return lines
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    values: np.ndarray = lines[..., None] >> shifts & (2**depth - 1)
    return values.reshape(len(lines), -1)[:, :count]


def _painted(indices: np.ndarray, palette: bytes, alpha: bytes) -> np.ndarray:
    colours = np.frombuffer(palette, dtype=np.uint8).reshape(-1, 3) if len(palette) % 3 == 0 else np.empty((0, 3))
    if indices.max() >= len(colours):
        raise _damage("a pixel has no colour in the palette", f"{int(indices.max())} of {len(colours)}")
    opaque = np.full((len(colours), 1), 255, dtype=np.uint8)
    opaque[: len(alpha), 0] = np.frombuffer(alpha[: len(colours)], dtype=np.uint8)
    return on_white(np.concatenate((colours, opaque), 1)[indices])


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, from 1 to 8; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    if not order or len(exif) < 8:
        return 1
    at = struct.unpack(order + "I", exif[4:8])[0]
    count = struct.unpack(order + "H", exif[at : at + 2])[0] if at + 2 <= len(exif) else 0
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, _, _, value = struct.unpack(order + "HHIH", exif[entry : entry + 10])
        if tag == ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A picture as its EXIF orientation says that it is to be seen."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def to_bytes(values: np.ndarray, most: int) -> np.ndarray:
    """Samples from 0 to `most` as bytes, rounded."""
    return values if most == 255 else ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def on_white(values: np.ndarray) -> np.ndarray:
    """RGB of bytes [height, width, 1 to 4 channels], of which the second or fourth is opacity."""
    channels = values.shape[-1]
    colour = values[..., : channels - (channels % 2 == 0)]
    colour = np.broadcast_to(colour, (*values.shape[:2], 3)) if values.ndim == 3 else colour
    if channels % 2:
        return colour
    opaque = values[..., -1:].astype(np.uint32)
    return ((colour * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def _netpbm_header(data: bytes) -> Header:
    if data.startswith(b"P7"):
        end = data.find(b"\nENDHDR\n", 0, 1024)
        lines = [line.split() for line in data[3:end].splitlines() if not line.startswith(b"#")]
        words = {line[0]: line[1] for line in lines if len(line) == 2}
        numbers = [words.get(name, b"") for name in (b"WIDTH", b"HEIGHT", b"MAXVAL", b"DEPTH")]
        colour, start = words.get(b"TUPLTYPE", b""), end + 8
    else:
        found = re.match(rb"P[56]\s+(\d+)\s+(\d+)\s+(\d+)\s", data[:1024])
        end, start = (0, found.end()) if found else (-1, 0)
        colour = b"GRAYSCALE" if data.startswith(b"P5") else b"RGB"
        numbers = [*(found.groups() if found else ()), b"%d" % TUPLES[colour]]
    if end < 0 or not all(number.isdigit() and len(number) < 10 for number in numbers) or len(numbers) < 4:
        raise _damage("its header is cut off", data[:40])
    width, height, most, channels = map(int, numbers)
    if TUPLES.get(colour) != channels or most not in (255, 65535):
        raise refusal("the picture has an unknown type", f"{colour!r}, {channels}, up to {most}", "Convert it to RGB.")
    return Header(width, height, 8 if most == 255 else 16, colour, start)


def _netpbm_pixels(data: bytes, header: Header) -> np.ndarray:
    assert isinstance(header.colour, bytes)
    shape = (header.height, header.width, TUPLES[header.colour])
    size = int(np.prod(shape)) * header.depth // 8
    if len(data) < header.start + size:
        raise _damage("pixels are missing", f"{len(data) - header.start} bytes of {size}")
    values = np.frombuffer(data, f">u{header.depth // 8}", count=int(np.prod(shape)), offset=header.start)
    values = to_bytes(values.reshape(shape), 2**header.depth - 1)
    if header.colour != b"CMYK":
        return on_white(values)
    light = 255 - values.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)
