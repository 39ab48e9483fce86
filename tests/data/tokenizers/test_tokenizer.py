"""Tokenizers: exact round trips, the fast path equal to the library, no text mistaken for a special token."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from fmscale.data.tokenizers import bpe
from fmscale.data.tokenizers.bpe import JsonTokenizer, train_bpe
from fmscale.data.tokenizers.protocol import SPECIALS, dtype_of
from fmscale.data.tokenizers.tokenizer import ByteTokenizer, bpe_size, frame, from_json, load_tokenizer
from fmscale.errors import ConfigError

CORPUS = [
    "It's a test of words, isn't it? They'll say so.\n" * 3,
    "def f(x):\n    return x + 1  # 12345\n\n\nclass A:\n\tpass\r\n" * 5,
    "Ünïcode wörter and 漢字, mixed with plain words.\n" * 3,
]

SNIPPETS = [*"aZ0 9'\n\t\r.,_#=-\x00\x1c\x1f\x7f\x0b\x0c", "  ", "\n\n", "'s", "'ll", "'S", "the", " the", "é", "漢"]
SNIPPETS += ["\xa0", "\u2028", "\U0001f600", "<|eos|>", " <|bos|>", "\x85", "٣", "一", "ſ"]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=40).map("".join)


@pytest.fixture(scope="module")
def trained() -> JsonTokenizer:
    return train_bpe(CORPUS, 400)


@pytest.fixture(scope="module")
def library(trained: JsonTokenizer) -> Library:
    library = Library.from_buffer(trained.to_json())
    library.encode_special_tokens = True
    return library


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS | st.text(), max_size=4))
def test_round_trip_is_exact(trained: JsonTokenizer, texts: list[str]) -> None:
    for tokenizer in (trained, ByteTokenizer()):
        ids = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(one) for one in ids] == texts
        assert all(one.dtype == np.uint16 and one.ndim == 1 for one in ids)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS | st.text())
def test_ids_are_the_librarys(trained: JsonTokenizer, library: Library, text: str) -> None:
    assert trained.encode_batch([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids


@settings(max_examples=80, deadline=None)
@given(text=st.lists(TEXTS, min_size=1, max_size=8).map("\n".join))
def test_cutting_long_text_changes_nothing(trained: JsonTokenizer, library: Library, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "PIECE_CHARACTERS", 50)
        pieces = list(bpe.cut(text))
        assert "".join(pieces) == text
        ids = trained.encode_batch([text])[0].tolist()
    places = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
    if all(bpe.CUT.match(text, place) or bpe.WORD_END.match(text, place) for place in places):
        assert ids == library.encode(text, add_special_tokens=False).ids
    assert trained.decode(ids) == text


LINES = {
    "words": "the quick brown fox's 2 dogs aren't lazy, are they? " * 40,
    "Chinese": "今天天气很好，我们去公园玩。「你好！」她说：好的；真的？" * 40,
    "Japanese": "「今日は」、天気がいい。コーヒーを飲む！" * 60,
    "Korean": "오늘 날씨가 좋다. 공원에 가자. " * 60,
    "Russian lines": "съешь ещё этих мягких булок\n" * 60,
    "tabs": "one\t\ttwo\u3000three\t" * 80,
    "base64": "aGVsbG8gd29ybGQ5dGVzdA0Kx1Yz" * 80,
    "digits": "12ab" * 400,
}
"""Texts without a line feed in front of an ASCII character."""


@pytest.mark.parametrize("name", LINES)
def test_long_lines_are_cut_between_words_at_a_cost_that_grows_with_the_text(
    trained: JsonTokenizer, library: Library, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = LINES[name]
    searched = []

    class Counted:
        """A pattern that counts the characters it may see."""

        def __init__(self, pattern: Any) -> None:
            self.pattern = pattern

        def search(self, text: str, begin: int, end: int) -> Any:
            searched.append(min(end, len(text)) - begin)
            return self.pattern.search(text, begin, end)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.pattern, name)

    monkeypatch.setattr(bpe, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(bpe, "CUT", Counted(bpe.CUT))
    monkeypatch.setattr(bpe, "WORD_END", Counted(bpe.WORD_END))
    pieces = list(bpe.cut(text))
    assert ("".join(pieces), max(map(len, pieces)) <= 100) == (text, True)
    assert sum(searched) <= 3 * len(text)
    expected = library.encode(text, add_special_tokens=False).ids
    assert trained.encode_batch([text])[0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=12).map("a\n".join).filter(len) | st.sampled_from([*LINES.values()]),
    group=st.integers(120, 300),
)
def test_parts_of_a_large_text_have_its_ids(trained: JsonTokenizer, texts: str, group: int) -> None:
    words = from_json(json.dumps({**json.loads(trained.to_json()), "normalizer": {"type": "NFC"}}).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "PIECE_CHARACTERS", 50)
        patch.setattr(bpe, "GROUP_CHARACTERS", group)
        patch.setattr("fmscale.data.tokenizers.tokenizer.PART_BYTES", group)
        for tokenizer in (trained, words, ByteTokenizer()):
            parts = list(tokenizer.encode_parts(texts.encode()))
            assert tokenizer.decode(np.concatenate(parts)) == tokenizer.decode(tokenizer.encode_batch([texts])[0])
            if tokenizer is not trained or all(len(word) < 50 for word in texts.split()):
                assert np.concatenate(parts).tolist() == tokenizer.encode_batch([texts])[0].tolist()


def test_the_library_gets_little_text_at_once(trained: JsonTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs 100 bytes for each byte."""
    sizes: list[int] = []
    encode = JsonTokenizer._encode_group

    def counted(self: JsonTokenizer, pieces: list[tuple[int, str]], joined: list[list[bytes]]) -> None:
        sizes.append(sum(len(piece) for _, piece in pieces))
        encode(self, pieces, joined)

    monkeypatch.setattr(JsonTokenizer, "_encode_group", counted)
    monkeypatch.setattr(bpe, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(bpe, "GROUP_CHARACTERS", 1000)
    texts = [LINES["Chinese"] * 5, "short", LINES["words"] * 3]
    expected = [trained.decode(ids) for ids in trained.encode_batch(texts)]
    assert (expected, max(sizes) <= 1000, sum(sizes)) == (texts, True, sum(map(len, texts)))
    assert len(list(trained.encode_parts(texts[0].encode()))) > 1


SETTINGS = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    },
    "dropout": 0.5,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
    },
}
"""Settings for calls in published files."""


def with_settings(tokenizer: JsonTokenizer, *names: str) -> bytes:
    content = json.loads(tokenizer.to_json())
    for name in names:
        (content["model"] if name == "dropout" else content)[name] = SETTINGS[name]
    return json.dumps(content).encode()


@pytest.mark.parametrize("names", [*((name,) for name in SETTINGS), tuple(SETTINGS)])
@pytest.mark.parametrize("words", [True, False], ids=["table", "library"])
def test_settings_of_calls_in_the_file_change_no_id(
    trained: JsonTokenizer, names: tuple[str, ...], words: bool
) -> None:
    texts = [*CORPUS, "", "word", CORPUS[0] * 20]
    content = json.loads(with_settings(trained, *names))
    plain = json.loads(trained.to_json())
    if not words:
        for one in (content, plain):
            one["normalizer"] = {"type": "NFC"}
    library = Library.from_str(json.dumps(plain))
    data = json.dumps(content).encode()
    tokenizer = from_json(data)
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer._words is not None) == words
    ids = [one.tolist() for one in tokenizer.encode_batch(texts)]
    assert ids == [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids == [one.tolist() for one in tokenizer.encode_batch(texts)]
    assert tokenizer.to_json() == data, "a dataset that has this file still has this tokenizer"
    theirs = Library.from_buffer(tokenizer.to_plain_json())
    assert ids == [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert trained.to_plain_json() == trained.to_json()


ALTERED: dict[str, dict[str, Any]] = {
    "ignored merges": {"ignore_merges": True},
    "a suffix": {"end_of_word_suffix": "</w>", "unk_token": "<|pad|>"},
    "fewer bytes": {},
    "fewer bytes, joined unknowns": {"unk_token": "<|pad|>", "fuse_unk": True},
    "fewer bytes by name": {"byte_fallback": True},
}


@pytest.mark.parametrize("name", ALTERED)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_the_table_is_exact_for_any_model_that_has_one(trained: JsonTokenizer, name: str, text: str) -> None:
    content = json.loads(trained.to_json())
    model = content["model"] = {**content["model"], **ALTERED[name]}
    if name.startswith("fewer"):
        model["vocab"] = {k: v for k, v in model["vocab"].items() if not {"x", "Ġ"} & set(k) or "|" in k}
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    tokenizer = from_json(json.dumps(content).encode())
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer._words is not None
    library = Library.from_str(json.dumps(content))
    library.encode_special_tokens = True
    assert tokenizer.encode_batch([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids


def test_long_lines_are_cut_and_the_table_is_bounded(trained: JsonTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(piece) for piece in bpe.cut("x" * (2**19 + 5))] == [2**18, 2**18 + 5]
    monkeypatch.setattr(bpe, "TABLE_WORDS", 100)
    tokenizer = from_json(trained.to_json())
    assert isinstance(tokenizer, JsonTokenizer)
    for i in range(50):
        tokenizer.encode_batch([f"word{'abcdefghij'[i % 10]}{i} " + "y" * 65])
    assert tokenizer._words is not None
    assert len(tokenizer._words) < 150
    assert "y" * 65 not in " ".join(tokenizer._words)


def test_special_tokens_in_text_are_text(trained: JsonTokenizer) -> None:
    for tokenizer in (trained, ByteTokenizer()):
        specials = {tokenizer.bos_id, tokenizer.eos_id}
        assert None not in specials
        ids = tokenizer.encode_batch(["<|eos|><|bos|>"])[0]
        assert not specials & set(ids.tolist())
        assert tokenizer.decode([tokenizer.eos_id or 0]) == "<|eos|>"


def test_training_does_not_depend_on_threads(trained: JsonTokenizer) -> None:
    code = (
        "from tests.data.tokenizers.test_tokenizer import CORPUS; from fmscale.data.tokenizers.bpe import train_bpe;"
        "print(train_bpe(CORPUS, 400).digest)"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert output.split() == [trained.digest]


def test_stored_json_gives_the_tokenizer_back(trained: JsonTokenizer) -> None:
    for tokenizer in (trained, ByteTokenizer()):
        again = from_json(tokenizer.to_json())
        assert (again.digest, again.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
        assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert trained.vocab_size <= 400
    assert ByteTokenizer().vocab_size == 256 + len(SPECIALS)


def test_tokenizer_files_and_their_names_of_bos_and_eos(trained: JsonTokenizer, tmp_path: Path) -> None:
    content = json.loads(trained.to_json())
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for spec in (str(tmp_path), f"hf:{tmp_path / 'tokenizer.json'}"):
        tokenizer = load_tokenizer(spec)
        assert tokenizer.to_json() == (tmp_path / "tokenizer.json").read_bytes()
        assert tokenizer.decode(tokenizer.encode_batch(["A Word"])[0]) == "a word"
    config = {"eos_token": {"content": "<|pad|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(tmp_path)).eos_id == SPECIALS.index("<|pad|>")


def test_large_vocabularies_are_stored_as_uint32(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(70_000)}, "unk_token": "w0"}
    plain: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "post_processor": None,
        "decoder": None,
    }
    content = {**plain, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    tokenizer = from_json(json.dumps(content).encode())
    assert dtype_of(tokenizer) == "uint32"
    ids = tokenizer.encode_batch(["w69999 w1"])[0]
    assert ids.dtype == np.uint32
    assert ids.tolist() == [69999, 1]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)


@pytest.mark.parametrize("spec", ["bpe:271", "bpe:", "bpe:8k", "bpe:-5", "bpe:99999999999999", "bpe:٣٣٣"])
def test_impossible_vocabulary_sizes_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="bpe:8192"):
        bpe_size(spec)
    assert bpe_size("bpe:272") == 272


@pytest.mark.parametrize("content", ["no json", "{}", '{"kind": "bytes", "format_version": 9}', "[]"])
def test_what_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)):
        load_tokenizer(str(path))
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        load_tokenizer("hf:gpt2")


def test_frame() -> None:
    ids = np.array([5, 6], dtype=np.uint16)
    assert frame(ids, 1, 2).tolist() == [1, 5, 6, 2]
    assert frame(ids, None, 2).tolist() == [5, 6, 2]
    assert frame(ids, None, None).dtype == np.uint16
