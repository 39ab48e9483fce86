"""Byte-level BPE: any tokenizer.json through the library `tokenizers`, trained ones too, and a fast path.

The library encodes about 1.4 MB a CPU second, nearly all of it in its regular expression. A byte-level BPE encodes each
word that the expression finds on its own, so words of ASCII text are found with Python's `re` and looked up in a table
of words seen before; only new words, and text that is not ASCII, go to the library. The ids are the same, which the
tests check against the library on random text.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from fmscale.data.tokenizers.protocol import SPECIALS, Ids, Tokenizer, dtype_of
from fmscale.errors import ConfigError

PIECE_CHARACTERS = 2**18
"""Longer texts are encoded in pieces: the library needs about 100 bytes for each byte of a text. Only where the words
are GPT-2's: other tokenizers may put a space before each text, so they get it whole.
"""

WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
"""The words of GPT-2 (Radford et al., 2019; `ByteLevel` of the library), for ASCII text."""

CUT = re.compile(r"\n(?=[!-~])")
"""Places at which a cut changes none of GPT-2's words: before a single white-space character in front of a visible one.
(`\\s+(?!\\S)` leaves the last white space of a run to the next word in any case.)
"""

WORD_CHARACTERS = 64
"""Longest word that the table keeps; longer ones (data in source code) hardly come twice."""

TABLE_WORDS = 2**18
"""Words in the table before it is emptied: about 40 MB; 12 MB of Python source have 4.8e4 different words."""

MAX_TOKEN_CHARACTERS = 64
"""Longest token that training makes: rulers of `====` would otherwise become tokens of any length."""

BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[CLS]")
EOS_NAMES = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names by which the begin and end of a text are found among a tokenizer's added tokens, best first."""


class JsonTokenizer(Tokenizer):
    """A tokenizer.json. `to_json` gives back the bytes it was made of, so that its digest never changes.

    What such a file says about calls instead of the vocabulary is switched off: truncation, padding, dropout, and the
    special tokens that its post-processor adds. A text's ids are all of it, and the same every time.
    """

    def __init__(self, data: bytes, where: str) -> None:
        """Raises ConfigError, with `where` it came from, if the library cannot read it."""
        try:
            self._library: Any = Library.from_buffer(data)
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"{where} is not a tokenizer that the library `tokenizers` can read",
                found=str(error)[:200],
                remedy="Give a tokenizer.json as `transformers` saves it (fast tokenizers only).",
            ) from error
        self._library.encode_special_tokens = True
        self._switched = _switch_off(self._library)
        self._data = data
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._dtype = np.dtype(dtype_of(self))
        self.bos_id: int | None = _first(vocabulary, BOS_NAMES)
        self.eos_id: int | None = _first(vocabulary, EOS_NAMES)
        self._words: dict[str, bytes] | None = {} if _is_plain(json.loads(data)) else None

    def name_specials(self, *, bos: str | None, eos: str | None) -> None:
        """Use these tokens as BOS and EOS where the tokenizer has them."""
        if bos and (number := self._library.token_to_id(bos)) is not None:
            self.bos_id = number
        if eos and (number := self._library.token_to_id(eos)) is not None:
            self.eos_id = number

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text. Where words are known, texts are cut between them, or every PIECE_CHARACTERS."""
        cutter = cut if self._words is not None else lambda text: iter((text,))
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in cutter(text)]
        quick = [self._words is not None and piece.isascii() for _, piece in pieces]
        found = self._look_up([WORDS.findall(text) for (_, text), q in zip(pieces, quick, strict=True) if q])
        slow = self._encode([text for (_, text), q in zip(pieces, quick, strict=True) if not q])
        encoded = {True: iter(found), False: iter(slow)}
        joined: list[list[bytes]] = [[] for _ in texts]
        for (number, _), q in zip(pieces, quick, strict=True):
            joined[number].append(next(encoded[q]))
        return [np.frombuffer(b"".join(parts), dtype=self._dtype) for parts in joined]

    def decode(self, ids: Ids) -> str:
        """The text of the ids; special tokens appear by name."""
        return str(self._library.decode([int(i) for i in ids], skip_special_tokens=False))

    def to_json(self) -> bytes:
        """The bytes of the tokenizer.json."""
        return self._data

    def to_plain_json(self) -> bytes:
        """A tokenizer.json for others to use: the same bytes, or without the settings that are off here."""
        return self._library.to_str().encode() if self._switched else self._data

    def _look_up(self, texts: list[list[str]]) -> list[bytes]:
        """Ids of each list of words, as bytes of the stored type."""
        if not texts:
            return []
        table = self._words
        assert table is not None, "only tokenizers with a table get here"
        if len(table) > TABLE_WORDS:
            table.clear()
        new = sorted(set(chain.from_iterable(texts)) - table.keys())
        table.update(zip(new, self._encode(new), strict=True))
        ids = [b"".join(map(table.__getitem__, words)) for words in texts]
        for word in new:
            if len(word) > WORD_CHARACTERS:
                del table[word]
        return ids

    def _encode(self, texts: list[str]) -> list[bytes]:
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype).tobytes() for encoding in encodings]


def cut(text: str) -> Iterator[str]:
    """The text in pieces of about PIECE_CHARACTERS, cut where GPT-2's words stay whole, or at the limit.

    Short texts that are not all ASCII are cut too, so that their ASCII lines take the fast path.
    """
    if len(text) <= PIECE_CHARACTERS and text.isascii():
        yield text
        return
    begin = 0
    while begin < len(text):
        end = begin + PIECE_CHARACTERS
        found = CUT.search(text, end) if end < len(text) else None
        if found and found.start() <= end + PIECE_CHARACTERS:
            end = found.start()
        yield from _by_script(text[begin:end])
        begin = end


def _by_script(piece: str) -> Iterator[str]:
    """The piece in runs of lines that are all ASCII and runs of others; runs are cut at CUT only."""
    if piece.isascii():
        yield piece
        return
    places = [0, *(match.start() for match in CUT.finditer(piece)), len(piece)]
    for _, lines in groupby((piece[start:stop] for start, stop in pairwise(places)), str.isascii):
        yield "".join(lines)


def train_bpe(texts: Iterable[str], vocab_size: int) -> JsonTokenizer:
    """Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2) of at most `vocab_size` ids.

    The same texts in the same order give the same tokenizer, for any number of threads. Pairs seen once are not merged,
    so a small corpus gives a smaller vocabulary.
    """
    library: Any = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_CHARACTERS,
        show_progress=False,
    )
    library.train_from_iterator(iter(texts), trainer=trainer)
    return JsonTokenizer(library.to_str().encode(), "the tokenizer trained on this corpus")


def _first(vocabulary: dict[str, int], names: Sequence[str]) -> int | None:
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def _switch_off(library: Any) -> bool:
    """Switch truncation, padding and dropout off; True if any of them was on.

    Published files keep the settings of the last call before they were saved.
    """
    dropout = isinstance(library.model, models.BPE) and library.model.dropout is not None
    switched = bool(dropout or library.truncation or library.padding)
    library.no_truncation()
    library.no_padding()
    if dropout:
        library.model.dropout = None
    return switched


def _is_plain(content: dict[str, Any]) -> bool:
    """True if the tokenizer is a BPE over GPT-2's words and nothing else, so that words can be looked up."""
    words = content.get("pre_tokenizer") or {}
    return (
        content.get("model", {}).get("type") == "BPE"
        and content.get("normalizer") is None
        and words.get("type") == "ByteLevel"
        and words.get("use_regex", True)
        and not words.get("add_prefix_space", True)
        and all(token["special"] for token in content.get("added_tokens", ()))
    )
