"""Tokenizers: text to ids and back. Bytes, a byte-level BPE trained here, or any `tokenizer.json`.

A store keeps the JSON of a tokenizer under its digest, and a commit names that digest. So any machine can read and
extend a dataset without a model hub.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fmscale.data.tokenizers.bpe import JsonTokenizer
from fmscale.data.tokenizers.protocol import SPECIALS, Ids, Tokenizer, names_of
from fmscale.errors import ConfigError
from fmscale.store.digest import canonical_json

PART_BYTES = 1 << 20
"""Bytes of a large text that become ids at once."""

NAMES = names_of(SPECIALS)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, then the special tokens."""

    vocab_size = 256 + len(SPECIALS)
    bos_id: int | None = 256
    eos_id: int | None = 257

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint16."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in texts]

    def encode_parts(self, data: bytes) -> Iterator[np.ndarray]:
        """Ids of a large text in parts."""
        for start in range(0, len(data), PART_BYTES):
            yield np.frombuffer(data[start : start + PART_BYTES], dtype=np.uint8).astype(np.uint16)

    specials: Mapping[str, int] = MappingProxyType({name: 256 + i for i, name in enumerate(SPECIALS)})

    def encode_rendered(self, text: str, typed: Set[int] = frozenset()) -> tuple[np.ndarray, np.ndarray]:
        """Ids, uint16, and spans; bytes of a character have its span."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for found in [*(one for one in NAMES.finditer(text) if one.start() not in typed), None]:
            begin, end = found.span() if found else (len(text), len(text))
            for at in range(place, begin):
                data = text[at].encode()
                ids += data
                spans += [(at, at + 1)] * len(data)
            if found:
                ids.append(self.specials[found[0]])
                spans.append((begin, end))
            place = end
        return np.array(ids, dtype=np.uint16), np.array(spans, dtype=np.int64).reshape(-1, 2)

    def decode(self, ids: Ids) -> str:
        """The text; bytes that are not UTF-8 (a cut character) appear as U+FFFD."""
        parts = (bytes((i,)) if i < 256 else SPECIALS[i - 256].encode() for i in map(int, ids))
        return b"".join(parts).decode(errors="replace")

    def to_json(self) -> bytes:
        """Canonical JSON of this tokenizer."""
        return canonical_json({"format_version": 1, "kind": "bytes", "specials": list(SPECIALS)})


def from_json(data: bytes, where: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that `to_json` or the library `tokenizers` wrote.

    Raises ConfigError with `where`, the origin of `data`, for other content.
    """
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not JSON", found=str(error), remedy="Give a Hugging Face tokenizer.json."
        ) from error
    if isinstance(content, dict) and content.get("kind") == "bytes":
        tokenizer = ByteTokenizer()
        if data != tokenizer.to_json():
            raise ConfigError(
                f"{where} is a bytes tokenizer of another version than this fmscale knows",
                found=content.get("format_version"),
                remedy="Use the fmscale version that wrote it, or newer.",
            )
        return tokenizer
    return JsonTokenizer(data, where)


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of `bytes`, of a path to a tokenizer.json or its folder, or of `hf:` and such a path.

    Raises ConfigError for a missing file. `fmscale.data.tokenizers.bpe.train_bpe` makes the tokenizer of `bpe:N`.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = Path(spec.removeprefix("hf:")).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The tokenizer cannot be read: {error.strerror}",
            found=spec,
            remedy="Use bytes, bpe:8192 (trained on the corpus), or the path of a tokenizer.json; "
            "nothing is downloaded.",
        ) from error
    tokenizer = from_json(data, str(path))
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        _name_specials(tokenizer, config)
    return tokenizer


def _name_specials(tokenizer: Tokenizer, config: Path) -> None:
    """Take BOS and EOS from the tokenizer_config.json that model folders have beside tokenizer.json."""
    if not isinstance(tokenizer, JsonTokenizer):
        return
    try:
        content = json.loads(config.read_bytes())
        names = {key: content.get(f"{key}_token") for key in ("bos", "eos")}
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ConfigError(
            "The file beside the tokenizer that names its BOS and EOS cannot be read",
            found=f"{config}: {error}",
            remedy="Repair or remove it.",
        ) from error
    texts = {key: v.get("content") if isinstance(v, dict) else v for key, v in names.items()}
    tokenizer.name_specials(bos=texts["bos"], eos=texts["eos"])


def bpe_size(spec: str) -> int | None:
    """The vocabulary size of `bpe:N`, or None for another kind. Raises ConfigError for an impossible size.

    The least size has an id for each byte and special token; the largest, 2**20, is four times the largest in use.
    """
    if not spec.startswith("bpe:"):
        return None
    least, most = 256 + len(SPECIALS), 2**20
    text = spec.removeprefix("bpe:")
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise ConfigError(
            "A BPE tokenizer cannot have this vocabulary size",
            found=spec,
            remedy=f"Write bpe:N with N from {least} to {most}, for instance bpe:8192.",
        )
    return int(text)


def frame(ids: np.ndarray, bos: int | None, eos: int | None) -> np.ndarray:
    """The ids of a document with the tokens that begin and end it."""
    first = int(bos is not None)
    framed = np.empty(first + len(ids) + (eos is not None), dtype=ids.dtype)
    framed[first : first + len(ids)] = ids
    if bos is not None:
        framed[0] = bos
    if eos is not None:
        framed[-1] = eos
    return framed
