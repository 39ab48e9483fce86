"""Text of tokens as they come: a character appears when its last byte has come."""

from collections.abc import Callable, Sequence

UNFINISHED = "�"
"""Character that a decoder gives for invalid or incomplete bytes."""


class TextStream:
    """Takes the tokens of one sequence and gives its text in pieces.

    Decoding a few tokens at a time costs the same at any length. The last tokens that gave text are decoded again
    with the new tokens, as some tokenizers decode a token differently at the beginning of a text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        """`decode` is the tokenizer's function; `context` holds the tokens of the prompt."""
        self._decode = decode
        self._tokens = list(context)[-8:]
        self._read = len(self._tokens)
        self._begin = 0

    def add(self, token: int) -> str:
        """The text that is complete with this token, perhaps empty."""
        self._tokens.append(token)
        return self._take(all_of_it=False)

    def end(self) -> str:
        """The rest of the text: an unfinished character appears as U+FFFD."""
        return self._take(all_of_it=True)

    def _take(self, *, all_of_it: bool) -> str:
        known = self._decode(self._tokens[self._begin : self._read])
        text = self._decode(self._tokens[self._begin :])
        if len(text) <= len(known) or (text.endswith(UNFINISHED) and not all_of_it):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return text[len(known) :]
