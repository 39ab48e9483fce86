"""Protocol of tokenizers: text to ids and back."""

from collections.abc import Iterator, Sequence
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
