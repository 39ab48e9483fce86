import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.infer import TextStream

TEXT = "x = 'ä€𝄞é' # naïve — 日本語 \U0001f600!"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT, "def f(x):\n    return x\n" * 5], 300)


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer.decode, context or [])
    return [*(stream.add(token) for token in ids), stream.end()]


def test_only_whole_characters_are_given() -> None:
    ids = ByteTokenizer().encode_batch([TEXT])[0].tolist()
    found = pieces(ByteTokenizer(), ids)
    assert found == [piece for character in TEXT for piece in (*[""] * (len(character.encode()) - 1), character)] + [""]


@given(text=st.text(max_size=30), start=st.integers(0, 5))
def test_the_pieces_are_the_text(bpe: Tokenizer, text: str, start: int) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode_batch([text])[0].tolist()
        context = tokenizer.encode_batch(["before that "])[0].tolist()[:start]
        assert "".join(pieces(tokenizer, ids, context)) == text


def test_a_character_that_is_never_finished_is_shown_as_such() -> None:
    ids = [*b"ab", 0xE2, 0x82, *b"c", 0xF0]
    found = pieces(ByteTokenizer(), ids)
    assert "".join(found) == bytes(ids).decode(errors="replace") == "ab�c�"
    assert found[2:4] == ["", ""]
    assert found[-1] == "�"


def test_text_that_may_begin_a_stop_string_waits() -> None:
    words = {1: "a", 2: "x", 3: "xy", 4: "END", 5: "E", 6: "ND!"}
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), stop=["xyz", "END"])
    assert [stream.add(i) for i in (1, 2, 1, 2, 3, 5, 6, 1)] == ["a", "", "xa", "", "x", "xy"[:0] + "xy", "", ""]
    assert stream.stopped
    assert stream.end() == ""
    open_end = TextStream(lambda ids: "".join(words[i] for i in ids), stop=["xyz"])
    assert (open_end.add(3), open_end.end(), open_end.stopped) == ("", "xy", False)
