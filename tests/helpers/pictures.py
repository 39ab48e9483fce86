"""Pictures for tests, and the package of a user's own that trains on them, installed as users install it."""

import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

PACKAGE = Path(__file__).parents[1] / "packages" / "pictures"
CLASSES = ("stripes", "tiles", "waves")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}
"""PNG's colour type by the number of channels."""
TUPLES = {1: "GRAYSCALE", 2: "GRAYSCALE_ALPHA", 3: "RGB", 4: "RGB_ALPHA"}


@contextmanager
def installed_pictures(folder: Path) -> Iterator[str]:
    """The package, installed by pip into a folder that is on this process's path; yields the folder."""
    target = folder / "installed"
    shutil.copytree(PACKAGE, folder / "source")  # a build writes beside its source
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(target), str(folder / "source")]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(target))
    try:
        yield str(target)
    finally:
        sys.path.remove(str(target))
        for name in [name for name in sys.modules if name.partition(".")[0] == "pictures"]:
            del sys.modules[name]


def paint(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    """A picture of a class: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((height, width))
    period, phase = rng.integers(3, 6), rng.integers(6)
    shade = {
        "stripes": (x + phase) // period % 2 * 1.0,
        "tiles": ((x + phase) // period + y // period) % 2 * 1.0,
        "waves": 0.5 + 0.5 * np.sin((y + phase) / period),
    }[kind]
    tint = np.eye(3)[CLASSES.index(kind)] * 0.5 + 0.3 * rng.random(3)
    noise = 0.1 * rng.random((height, width, 3))
    painted: np.ndarray = ((0.8 * shade[..., None] * tint + 0.1 + noise) * 255 / 1.2).astype(np.uint8)
    return painted


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


HUGE, INTERLACED = (
    SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)) + chunk(b"IEND", b"")
    for side, interlaced in ((20_000, 0), (9, 1))
)


def png(
    samples: np.ndarray,
    *,
    depth: int = 8,
    colour: int | None = None,
    filters: Sequence[int] = (0,),
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of samples [height, width, channels]; row y has filter number y of `filters`, which repeat. Chunks `before`
    and `after` stand around the pixels.
    """
    height, width, channels = samples.shape
    lines = _lines(samples.reshape(height, -1), depth)
    step = max(1, channels * depth // 8)
    kinds = [filters[y % len(filters)] for y in range(height)]
    raw = b"".join(bytes([kind]) + _filtered(lines, y, step, kind) for y, kind in enumerate(kinds))
    kind = COLOUR_TYPES[channels] if colour is None else colour
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(raw)), *after, (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(name, content) for name, content in chunks)


def _lines(values: np.ndarray, depth: int) -> np.ndarray:
    """Rows of samples as rows of bytes."""
    if depth == 16:
        return values.astype(">u2").view(np.uint8)
    if depth == 8:
        return values.astype(np.uint8)
    bits = values[..., None] >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


def _filtered(lines: np.ndarray, y: int, step: int, kind: int) -> bytes:
    line = lines[y].astype(np.int64)
    left = np.append(np.zeros(step, np.int64), line[:-step])
    up = lines[y - 1].astype(np.int64) if y else np.zeros_like(line)
    corner = np.append(np.zeros(step, np.int64), up[:-step])
    distances = np.abs(np.stack((up - corner, left - corner, left + up - 2 * corner)))
    paeth = np.choose(distances.argmin(0), (left, up, corner))
    predicted = (np.zeros_like(line), left, up, (left + up) // 2, paeth)[kind]
    return bytes(((line - predicted) % 256).astype(np.uint8))


def exif(orientation: int, order: str = "<") -> tuple[bytes, bytes]:
    """The chunk with an EXIF block that holds an orientation behind another entry."""
    entries = b"".join(
        struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in ((0x0100, 9), (0x0112, orientation))
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 2)
    return b"eXIf", start + entries + bytes(4)


def pam(samples: np.ndarray, tuples: str | None = None, most: int = 255) -> bytes:
    """A PAM of samples [height, width, channels]."""
    height, width, channels = samples.shape
    lines = ("P7", f"WIDTH {width}", f"HEIGHT {height}", f"DEPTH {channels}", f"MAXVAL {most}")
    header = "\n".join((*lines, f"TUPLTYPE {tuples or TUPLES[channels]}", "ENDHDR", ""))
    return header.encode() + samples.astype(">u1" if most == 255 else ">u2").tobytes()


def picture(number: int) -> tuple[str, bytes]:
    """Class and file of picture `number`: sides from 6 to 60 pixels, uniform in their logarithms, in mixed modes."""
    rng = np.random.default_rng(number)
    kind = CLASSES[number % len(CLASSES)]
    height, width = np.exp(rng.uniform(np.log(6), np.log(60), 2)).astype(int).tolist()
    pixels = paint(kind, height, width, number)
    mode = int(rng.integers(6))
    if mode == 0:
        return kind, png(pixels, filters=(1, 2))
    if mode == 1:
        return kind, png(pixels.astype(np.uint16) * 257, depth=16, filters=(2,))
    if mode == 2:
        return kind, png(np.concatenate((pixels, np.full((height, width, 1), 255)), -1), filters=(1,))
    if mode == 3:
        colours, indices = _palette(pixels)
        return kind, png(indices, colour=3, before=[(b"PLTE", colours.tobytes())])
    if mode == 4:
        return kind, png(pixels, before=[exif(1 + number % 8, "<>"[number % 2])], filters=(2, 1))
    return kind, pam(np.concatenate((255 - pixels, np.zeros((height, width, 1), np.uint8)), -1), "CMYK")


def _palette(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 64 colours, and their indices [height, width, 1]."""
    levels = pixels // 64
    indices = levels @ np.array([16, 4, 1], dtype=np.uint8)
    numbers = np.arange(64)
    colours = np.stack((numbers // 16, numbers // 4 % 4, numbers % 4), -1) * 64 + 32
    return colours.astype(np.uint8), indices[..., None]


def damage(data: bytes, how: str) -> bytes:
    """A damaged file of the same length."""
    middle = len(data) // 2
    return {
        "flip": data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :],
        "zeros": data[:-40] + bytes(40),
        "text": b"<html>not found" + data[15:],
        "huge": HUGE[:33] + data[33:],
    }[how]


def records(count: int) -> list[dict[str, Any]]:
    """Records of the first pictures, as ingest makes them of files in a folder a class."""
    out: list[dict[str, Any]] = []
    for number in range(count):
        kind, data = picture(number)
        out.append({"name": f"{kind}/{number:04d}.png", "data": data, "folder": kind})
    return out


def as_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The records as a table."""
    kinds = (("name", pa.string()), ("data", pa.binary()), ("folder", pa.string()))
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds})
