"""Text of tokens as they come: a character appears when its last byte has come, a stop string never."""

from collections.abc import Callable, Sequence

UNFINISHED = "�"
"""Character that a decoder gives for invalid or incomplete bytes."""


class TextStream:
    """Takes the tokens of one sequence and gives its text in pieces.

    Decoding a few tokens at a time costs the same at any length. The last tokens that gave text are decoded again
    with the new tokens, as some tokenizers decode a token differently at the beginning of a text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        """`decode` is the tokenizer's function; `context` holds the tokens of the prompt. The text ends before the
        first of the strings `stop`, and text that may be the beginning of such a string waits.
        """
        self._decode = decode
        self._tokens = list(context)[-8:]
        self._read = len(self._tokens)
        self._begin = 0
        self._stop = stop
        self._waiting = ""
        self.stopped = False
        """True once a stop string has come; later tokens give nothing."""

    def add(self, token: int) -> str:
        """The text that is complete with this token, perhaps empty."""
        self._tokens.append(token)
        return self._before_stop(self._take(all_of_it=False), all_of_it=False)

    def end(self) -> str:
        """The rest of the text: an unfinished character appears as U+FFFD."""
        return self._before_stop(self._take(all_of_it=True), all_of_it=True)

    def _take(self, *, all_of_it: bool) -> str:
        known = self._decode(self._tokens[self._begin : self._read])
        text = self._decode(self._tokens[self._begin :])
        if len(text) <= len(known) or (text.endswith(UNFINISHED) and not all_of_it):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _before_stop(self, text: str, *, all_of_it: bool) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        text = self._waiting + text
        found = [place for place in map(text.find, self._stop) if place >= 0]
        self.stopped = bool(found)
        safe = min(found) if found else len(text)
        if not found and not all_of_it:
            lengths = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
            safe -= max(lengths, default=0)
        self._waiting = "" if found else text[safe:]
        return text[:safe]
