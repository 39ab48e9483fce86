"""Crops of pictures as samples: a token is a patch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from fmscale.data.samples.protocol import BadRecord, Draw, Part, Record, Sample, TooLong

from .files import Header, read_header, read_pixels, refusal

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A random part of a picture, mirrored or not, as patches of its own number; the class is the file's folder."""

    version: ClassVar[int] = 1

    classes: tuple[str, ...]
    """Folders, in the order of their labels."""
    column: str = "data"
    """Column with the bytes of the files."""
    patch: int = 8
    """Side of a patch in pixels."""
    side_most: int = 256
    """Longest side of a crop in pixels."""
    crop: float = 0.75
    """Least part of a side that a crop keeps."""
    bytes_most: int = 2**25
    """Size of a file above which it is not decoded."""
    pixels_most: int = 178_000_000
    """Pixels above which a picture is not decoded, whatever its header promises to be compressed."""
    too_long: TooLong = "refuse"
    """Crops with more patches than a forward: refuse to begin, leave the picture out, or crop it further."""
    max_tokens: int | None = None
    """Patches to which `cut` crops."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Name, bytes and folder of a file."""
        return ("name", self.column, "folder")

    @property
    def parts(self) -> Mapping[str, Part]:
        """Pixels and place of each patch, label of the picture."""
        return {
            "patches": Part("uint8", (self.patch * self.patch * 3,)),
            "places": Part("int32", (2,)),
            "label": Part("int64", per_token=False),
        }

    def size(self, record: Record) -> int:
        """Patches of the largest crop, from the header alone."""
        _, _, header = self._checked(record)
        return self._grid(header.height) * self._grid(header.width)

    def decode(self, record: Record) -> Any:
        """Pixels and label. Limits are checked before a pixel is decompressed."""
        data, label, _ = self._checked(record)
        return _named(record["name"], read_pixels, data), label

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        """A crop of whole patches; `draw` alone decides its size, its place and its side."""
        pixels, label = media
        tall, wide, top, left = draw("crop", 4).tolist()
        rows, columns = (
            max(1, int(self._grid(side) * (self.crop + (1 - self.crop) * share)))
            for side, share in ((pixels.shape[0], tall), (pixels.shape[1], wide))
        )
        while rows * columns > limit:
            rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
        p = self.patch
        height, width = (max(p, side) for side in pixels.shape[:2])
        pixels = np.pad(pixels, ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
        y, x = int(top * (height - rows * p + 1)), int(left * (width - columns * p + 1))
        part = pixels[y : y + rows * p, x : x + columns * p]
        if draw("flip")[0] < 0.5:
            part = part[:, ::-1]
        patches = part.reshape(rows, p, columns, p, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        places = np.indices((rows, columns), dtype=np.int32).reshape(2, -1).T
        tensors = {"patches": patches, "places": places, "label": np.array(label)}
        return Sample(tensors, (rows * columns,))

    def _grid(self, side: int) -> int:
        """Most patches along a side."""
        return max(1, min(side, self.side_most) // self.patch)

    def _checked(self, record: Record) -> tuple[bytes, int, Header]:
        """The bytes of a file that may be decoded, its label, its header."""
        data, name, folder = record[self.column], record["name"], record["folder"]
        if not isinstance(data, bytes):
            found = f"{name}: {type(data).__name__}"
            raise refusal(f"the record has no bytes in {self.column}", found, "Name the column as the spec's `column`.")
        if folder not in self.classes:
            raise refusal("the picture's folder is no class", f"{name}: {folder}", "Add it to the spec's `classes`.")
        if len(data) > self.bytes_most:
            found = f"{name}: {len(data)} bytes"
            raise refusal("the file is too large", found, f"Raise the spec's bytes_most, {self.bytes_most}.")
        header = _named(name, read_header, data)
        if header.width * header.height > self.pixels_most:
            found = f"{name}: {header.width} x {header.height} pixels"
            raise refusal("the picture is too large", found, f"Raise the spec's pixels_most, {self.pixels_most}.")
        return data, self.classes.index(folder), header


def _named(name: str, read: Callable[[bytes], T], data: bytes) -> T:
    """The result of `read`; its refusal tells the name of the file."""
    try:
        return read(data)
    except BadRecord as error:
        raise refusal(error.cause, f"{name}: {error.found}", error.remedy) from None
