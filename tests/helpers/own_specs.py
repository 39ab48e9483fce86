"""Specs of the user's own, as an installed package would have them: `kind: tests.helpers.own_specs:NAME`."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fmscale.data.samples.protocol import BadRecord, Draw, Part, Record, Sample, TooLong


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A text's bytes as tokens. It fails in the ways that specs fail, at texts that say so."""

    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("text", "absent")
    parts: ClassVar[Mapping[str, Part]] = {"tokens": Part("int64")}
    too_long: ClassVar[TooLong] = "drop"

    deaths: str = ""
    """Folder whose file `next` a process deletes when a text kills it: without the file no text kills."""

    def size(self, record: Record) -> int:
        text = record["text"]
        if text == "raise":
            raise ZeroDivisionError("a fault of the spec")
        if text == "kill" and self.deaths and (Path(self.deaths) / "next").exists():
            (Path(self.deaths) / "next").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        sizes: dict[str, Any] = {"huge": 2**32, "negative": -1, "half": 0.5}
        return sizes.get(text, len(text))  # type: ignore[no-any-return]

    def decode(self, record: Record) -> Any:
        return record["text"].encode()

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        return Sample({"tokens": np.frombuffer(media, np.uint8)}, (len(media),))


@dataclass(frozen=True, kw_only=True)
class Fragile(Bytes):
    """Bytes of a text, which fail in decoder and make-function as the text's first word says."""

    fails: bool = True
    """False for the same samples without any failure."""

    def size(self, record: Record) -> int:
        return len(record["text"])

    def decode(self, record: Record) -> Any:
        text = record["text"]
        if self.fails and text.startswith("decode"):
            raise [ZeroDivisionError, KeyError, UnicodeError, MemoryError][len(text) % 4](text)
        return text.encode()

    def make(self, media: Any, draw: Draw, limit: int) -> Sample:
        word = media.split()[0] if self.fails else b""
        tokens = np.frombuffer(media, np.uint8)
        if word == b"bad":
            raise BadRecord("the text is bad", found=media[:20])
        if word == b"bug":
            raise IndexError("a fault of make")
        if word == b"long":
            tokens = np.append(tokens, tokens)
        tensors = {"tokens": tokens[:-1] if word == b"short" else tokens}
        return Sample({} if word == b"lacking" else tensors, (len(tokens),))
