"""Protocol of tokenizers: text to ids and back."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Protocol

import numpy as np

from fmscale.store.digest import metadata_digest

SPECIALS = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|mask|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    *(f"<|reserved_{i}|>" for i in range(9)),
)
"""Special tokens of byte tokenizers and trained tokenizers: 16, enough for later objectives (infilling, masking, chat).
A stored tokenizer cannot grow, and an unused id costs a row of the embedding.
"""

Ids = Sequence[int] | np.ndarray
"""Token ids of one text."""


class Tokenizer(Protocol):
    """Text to token ids and back. Threads must not share it."""

    vocab_size: int
    """Number above every id, ids of special and added tokens included."""
    bos_id: int | None
    """Id of the token that begins a document, or None."""
    eos_id: int | None
    """Id of the token that ends a document, or None."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, 1-D of type `dtype_of(self)`. No special token is added, and the name of a special token in
        a text is encoded as text.
        """
        ...

    def encode_parts(self, data: bytes) -> Iterator[np.ndarray]:
        """Ids of a large text in UTF-8, in parts and, where the tokenizer can cut a text, in little memory."""
        yield self.encode_batch([data.decode()])[0]

    @property
    def specials(self) -> Mapping[str, int]:
        """Ids of the special tokens by their names in a text."""
        ...

    def encode_rendered(self, text: str, typed: Set[int] = frozenset()) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text in which names of special tokens are these tokens, but for the names that begin at `typed`; and
        the span of each token in characters, [n, 2]. No token is added.
        """
        ...

    def decode(self, ids: Ids) -> str:
        """The text of the ids; special tokens appear by name."""
        ...

    def to_json(self) -> bytes:
        """The tokenizer as JSON; `from_json` reads it."""
        ...

    @property
    def digest(self) -> str:
        """Digest of `to_json()`, by which stores and commits name the tokenizer."""
        return metadata_digest(self.to_json())


def dtype_of(tokenizer: Tokenizer) -> str:
    """Type in which the ids are stored: uint16 where 65536 values are enough, otherwise uint32."""
    return "uint16" if tokenizer.vocab_size <= 65536 else "uint32"


def names_of(specials: Iterable[str]) -> re.Pattern[str]:
    """Pattern of the names of special tokens, the longest first; of nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")


def parts_of(text: str, typed: Set[int], names: re.Pattern[str]) -> list[tuple[int, int, bool]]:
    """(begin, end, plain) of the parts of a rendered text: plain where a special token was typed, up to the special
    tokens around it that were not, so that words stay whole.
    """
    if not typed:
        return [(0, len(text), False)]
    written = [found.span() for found in names.finditer(text) if found.start() not in typed]
    edges = [0, *(place for span in written for place in span), len(text)]
    parts: list[tuple[int, int, bool]] = []
    for number, (begin, end) in enumerate(pairwise(edges)):
        plain = number % 2 == 0 and any(begin <= place < end for place in typed)
        if parts and not plain and not parts[-1][2]:
            parts[-1] = (parts[-1][0], end, False)
        elif begin < end:
            parts.append((begin, end, plain))
    return parts
