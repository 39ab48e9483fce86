"""Byte-level BPE: any tokenizer.json, published or trained here, through the library `tokenizers`; and a fast path.

The library encodes about 1.4 MB a CPU second and spends nearly all of this time in its regular expression. A byte-level
BPE encodes each word of that expression independently. So Python's `re` finds the words of ASCII text, and a table has
the ids of earlier words; the library encodes only new words and text outside ASCII. The ids are the same: the tests
compare them with the library's ids on random text.
"""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from fmscale.data.tokenizers.protocol import SPECIALS, Ids, Tokenizer, dtype_of, names_of, parts_of
from fmscale.errors import ConfigError

PIECE_CHARACTERS = 2**18
"""Longer texts are encoded in pieces: the library needs about 100 bytes for each byte of a text. This holds for GPT-2's
words only: other tokenizers may put a space before each text, so they get whole texts.
"""

WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
"""The words of GPT-2 (Radford et al., 2019; `ByteLevel` of the library), for ASCII text."""

CUT = re.compile(r"\n(?=[!-~])")
"""Places at which a cut changes none of GPT-2's words: before a line feed in front of a visible character.
(`\\s+(?!\\S)` always leaves the last character of white space to the next word.)
"""

WORD_END = re.compile(
    r"[ \t\n\u3000](?=\S)"
    r"|(?<=[\u3001\u3002\u300d\uff01\uff0c\uff1a\uff1b\uff1f])(?=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3])"
    r"|(?<=[A-Za-z])(?=[0-9])"
)
"""More such places, for text without line feeds: before the last white space of a run, between a mark and a letter of
Chinese, Japanese or Korean text, and between a letter and a digit.
"""

GROUP_CHARACTERS = 2**20
"""Text of a call of the library, about: it needs 100 bytes for each byte of the text."""

WORD_CHARACTERS = 64
"""Longest word that the table keeps; longer words (data in source code) rarely repeat."""

TABLE_WORDS = 2**18
"""Words in the table before it is emptied: about 40 MB; 12 MB of Python source have 4.8e4 different words."""

MAX_TOKEN_CHARACTERS = 64
"""Longest token that training makes: rulers of `====` would otherwise become tokens of any length."""

BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[CLS]")
EOS_NAMES = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
"""Names by which the begin and end of a text, and filler, are found among a tokenizer's added tokens, best first."""


class JsonTokenizer(Tokenizer):
    """A tokenizer.json. `to_json` returns the original bytes, so that the digest never changes.

    Settings for calls are switched off: truncation, padding, dropout, and the special tokens of the post-processor.
    So the ids cover the whole text, and are the same in every call.
    """

    def __init__(self, data: bytes, where: str) -> None:
        """Raises ConfigError with `where`, the origin of `data`, if the library cannot read `data`."""
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
        """Ids of each text. A text of GPT-2's words is cut between words, or else every PIECE_CHARACTERS."""
        cutter = cut if self._words is not None else lambda text: iter((text,))
        joined: list[list[bytes]] = [[] for _ in texts]
        group: list[tuple[int, str]] = []
        size = 0
        for number, text in enumerate(texts):
            for piece in cutter(text):
                if group and size + len(piece) > GROUP_CHARACTERS:
                    self._encode_group(group, joined)
                    group, size = [], 0
                group.append((number, piece))
                size += len(piece)
        self._encode_group(group, joined)
        return [np.frombuffer(b"".join(parts), dtype=self._dtype) for parts in joined]

    def encode_parts(self, data: bytes) -> Iterator[np.ndarray]:
        """Ids of a large text in parts; a tokenizer of other words than GPT-2's needs the whole text at once."""
        if self._words is None:
            yield from super().encode_parts(data)
            return
        decoder, rest = getincrementaldecoder("utf-8")(), ""
        for start in range(0, len(data), GROUP_CHARACTERS):
            *pieces, rest = cut(rest + decoder.decode(data[start : start + GROUP_CHARACTERS]))
            yield from self.encode_batch(pieces)
        yield from self.encode_batch([rest])

    def _encode_group(self, pieces: list[tuple[int, str]], joined: list[list[bytes]]) -> None:
        """Append the ids of each piece to those of its text."""
        quick = [self._words is not None and piece.isascii() for _, piece in pieces]
        quick_ids = self._look_up([WORDS.findall(text) for (_, text), q in zip(pieces, quick, strict=True) if q])
        slow_ids = self._encode([text for (_, text), q in zip(pieces, quick, strict=True) if not q])
        encoded = {True: iter(quick_ids), False: iter(slow_ids)}
        for (number, _), q in zip(pieces, quick, strict=True):
            joined[number].append(next(encoded[q]))

    @cached_property
    def specials(self) -> Mapping[str, int]:
        """Ids of the special tokens by their names."""
        return {one.content: number for number, one in self._library.get_added_tokens_decoder().items() if one.special}

    def encode_rendered(self, text: str, typed: Set[int] = frozenset()) -> tuple[np.ndarray, np.ndarray]:
        """Ids and spans, those of `transformers` for a text without typed special tokens."""
        ids, spans = [np.empty(0, self._dtype)], [np.empty((0, 2), np.int64)]
        for begin, end, plain in parts_of(text, typed, self._names):
            # SentencePiece puts a space before a text, but not before a text's middle.
            lead = "\n" if begin and plain and self._leads else ""
            self._library.encode_special_tokens = plain
            try:
                found = self._call(self._library.encode, lead + text[begin:end])
            finally:
                self._library.encode_special_tokens = True
            # Each of these attributes is a copy of all its values.
            places = np.array(found.offsets, dtype=np.int64).reshape(-1, 2) - len(lead)
            kept = (places[:, 1] > 0) | (not lead)
            ids.append(np.array(found.ids, dtype=self._dtype)[kept])
            spans.append(places[kept].clip(0) + begin)
        return np.concatenate(ids), np.concatenate(spans)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return names_of(self.specials)

    @cached_property
    def _leads(self) -> bool:
        """True if the first word of a text has other ids than the same word behind a line feed."""
        alone, behind = (self._library.encode(text, add_special_tokens=False).ids for text in ("a", "\na"))
        return bool(behind[-len(alone) :] != alone)

    def decode(self, ids: Ids) -> str:
        """The text of the ids; special tokens appear by name."""
        return str(self._library.decode([int(i) for i in ids], skip_special_tokens=False))

    def to_json(self) -> bytes:
        """The bytes of the tokenizer.json."""
        return self._data

    def to_plain_json(self, bos: int | None = None) -> bytes:
        """A tokenizer.json for other software, which gives the ids of `encode_batch` behind `bos`: the original bytes,
        or a copy without the settings that are switched off here.
        """
        content = json.loads(self._library.to_str())
        before = content["post_processor"]
        content["post_processor"] = _beginning(before, self._library.id_to_token(bos) if bos is not None else "", bos)
        if not self._switched and content["post_processor"] == before:
            return self._data
        return json.dumps(content, ensure_ascii=False).encode()

    def hf_config(self, bos: int | None, eos: int | None) -> dict[str, Any]:
        """The tokenizer_config.json beside `to_plain_json`, for documents between `bos` and `eos`.

        Filler is the tokenizer's own, or `eos`. The class is none of a model, because LlamaTokenizer of transformers 5
        changes the pre-tokenizer. Names of special tokens in a text are text, as in an ingest.
        """
        filler = _first(self._library.get_vocab(with_added_tokens=True), PAD_NAMES)
        ids = {"bos_token": bos, "eos_token": eos, "pad_token": eos if filler is None else filler}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: self._library.id_to_token(number) for name, number in ids.items() if number is not None},
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }

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
        encodings = self._call(self._library.encode_batch_fast, texts)
        return [np.array(encoding.ids, dtype=self._dtype).tobytes() for encoding in encodings]

    def _call(self, encode: Callable[..., Any], texts: Any) -> Any:
        """Call the library. Raises ConfigError where it gives up."""
        try:
            return encode(texts, add_special_tokens=False)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the library, which exports no name for it
                raise
            longest = texts if isinstance(texts, str) else max(texts, key=len)
            raise ConfigError(
                "the tokenizer cannot split this text",
                found=f"{error}; the text begins {longest[:40]!r}",
                remedy="The library gives up on patterns that try too many ways: take a tokenizer.json without nested "
                "repetitions such as (a+)+ in its patterns.",
            ) from error


def cut(text: str) -> Iterator[str]:
    """The text in pieces of about PIECE_CHARACTERS, cut where GPT-2's words stay whole, or in a longer word.

    Short texts that are not all ASCII are cut too, so that their ASCII lines take the fast path.
    """
    if len(text) <= PIECE_CHARACTERS and text.isascii():
        yield text
        return
    begin = 0
    while begin < len(text):
        end = begin + PIECE_CHARACTERS
        if end < len(text):
            # Two characters more, so that the last place has a character behind it.
            matches = (pattern.search(text, end, end + PIECE_CHARACTERS + 2) for pattern in (CUT, WORD_END))
            rest = len(text) if len(text) <= end + PIECE_CHARACTERS else end
            end = next((match.start() for match in matches if match), rest)
        yield from _by_script(text[begin:end])
        begin = end


def _by_script(piece: str) -> Iterator[str]:
    """The piece in runs of ASCII lines and runs of other lines; runs are cut at CUT only."""
    if piece.isascii():
        yield piece
        return
    places = [0, *(match.start() for match in CUT.finditer(piece)), len(piece)]
    for _, lines in groupby((piece[start:stop] for start, stop in pairwise(places)), str.isascii):
        yield "".join(lines)


def train_bpe(texts: Iterable[str], vocab_size: int) -> JsonTokenizer:
    """Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2) of at most `vocab_size` ids.

    The same texts in the same order give the same tokenizer, for any number of threads. Pairs that occur once are not
    merged, so a small corpus gives a smaller vocabulary.
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


def _beginning(processor: dict[str, Any] | None, name: str, number: int | None) -> dict[str, Any] | None:
    """The post-processor that adds nothing but BOS, the token `name` of id `number`; no token if that is None."""
    parts = processor.get("processors", [processor]) if processor else []
    kept = [part for part in parts if part["type"] == "ByteLevel"]
    if number is not None:
        begin = {"SpecialToken": {"id": name, "type_id": 0}}
        first, second = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")
        special = {name: {"id": name, "ids": [number], "tokens": [name]}}
        pair = [begin, first, begin, second]
        kept.append({"type": "TemplateProcessing", "single": [begin, first], "pair": pair, "special_tokens": special})
    return {"type": "Sequence", "processors": kept} if len(kept) > 1 else kept[0] if kept else None


def _switch_off(library: Any) -> bool:
    """Switch truncation, padding and dropout off; True if any setting was on.

    Published files keep the settings of the last call before the save.
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
