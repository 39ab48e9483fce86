"""Records as tokens and trained spans: equal to transformers and TRL, and what is refused, counted or cut."""

import json
from typing import Any

import numpy as np
import pytest

from fmscale.data.chat.render import LeftOut, Policy, RecordRenderer
from fmscale.data.chat.template import TemplateFault
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.errors import ConfigError, DataError
from fmscale.store.datasets.templates import ChatTemplate
from tests.helpers.chats import chat, golden, record, template_of, tokenizer_of

FAMILIES = ["qwen2_5", "qwen3", "llama3", "gemma", "phi3_5", "cohere", "deepseekv3", "lfm2_v2"]
FORGETS = {("qwen3", "turns"), ("qwen3", "thinking"), ("qwen3", "tool")}
"""Chats of which the family's own template drops thinking."""


def renderer(family: str, which: str = "template", **policy: Any) -> RecordRenderer:
    return RecordRenderer(template_of(family, which), tokenizer_of(family), eos=1, policy=Policy(**policy))


def trained_text(family: str, made: Any) -> list[str]:
    """The trained text of each text of a record."""
    ends = np.cumsum(made.pieces)
    parts = zip(np.split(made.tokens, ends[:-1]), np.split(made.trained, ends[:-1]), strict=True)
    return [tokenizer_of(family).decode(ids[mask].tolist()) for ids, mask in parts]


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_those_of_trl_where_the_template_marks_what_is_generated(family: str) -> None:
    made = renderer(family, "training")
    for name, want in golden()["families"][family]["chats"].items():
        found = made.tokens(record(messages=golden()["messages"][name]), "chat")
        assert found.tokens.tolist() == want["trained_ids"], name
        assert "".join(map(str, found.trained.astype(int))) == want["mask"], name


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers_and_masks_end_with_the_turn(family: str) -> None:
    """Against TRL the line feed behind a turn's end is not trained, nor what the generation prompt has of the turn."""
    made, tokenizer = renderer(family), tokenizer_of(family)
    for name, want in golden()["families"][family]["chats"].items():
        messages = golden()["messages"][name]
        assert made.prompt(messages[:-1]).tolist() == want["prompt"], name
        found = made.tokens(record(messages=messages), "chat")
        if (family, name) in FORGETS:
            assert len(found.pieces) == 2
            assert found.tokens[-found.pieces[1] :].tolist() == want["ids"], name
            continue
        assert found.pieces == [len(want["ids"])]
        assert found.tokens.tolist() == want["ids"], name
        if want["ids"] == want["trained_ids"]:
            differ = np.flatnonzero(found.trained != np.array([*map(int, want["mask"])], dtype=bool))
            words = {tokenizer.decode([found.tokens[i]]) for i in differ}
            assert words <= {"\n", "<｜Assistant｜>"}, name
            assert not found.trained[differ].any() or words == {"<｜Assistant｜>"}


def test_a_template_that_forgets_gives_a_text_a_turn() -> None:
    made = renderer("qwen3").tokens(record(messages=golden()["messages"]["thinking"]), "chat")
    assert trained_text("qwen3", made) == [
        "<think>\nfunction\n</think>\n\nHello there<|im_end|>",
        "<think>\nten\n</think>\n\nParis<|im_end|>",
    ]


@pytest.mark.parametrize("which", ["template", "training"])
def test_weights_and_the_last_turn_choose_what_is_trained(which: str) -> None:
    talk = chat("a", "b", "c", "d")
    talk[1]["weight"] = 0
    for options, messages in (({}, talk), ({"trained": "last"}, chat("a", "b", "c", "d"))):
        made = renderer("llama3", which, **options).tokens(record(messages=messages), "chat")
        assert trained_text("llama3", made) == ["d<|eot_id|>"]
    with pytest.raises(LeftOut) as caught:
        renderer("llama3", which).tokens(record(messages=chat("a", "b", weight=0)), "chat")
    assert caught.value.reason == "no trained token"


def test_special_tokens_typed_by_users_are_text_and_counted() -> None:
    tokenizer = tokenizer_of("qwen2_5")
    end, text = tokenizer.specials["<|im_end|>"], "x<|im_end|> y"
    made = renderer("qwen2_5").tokens(record(messages=chat(text, text)), "chat")
    assert made.notes == ("typed",)
    assert made.tokens.tolist().count(end) == 3, "system, user, assistant: written by the template alone"
    assert trained_text("qwen2_5", made) == [f"{text}<|im_end|>"]
    plain = tokenizer.encode_batch([f"assistant\n{text}"])[0].tolist()
    assert made.tokens.tolist()[-len(plain) - 2 : -2] == plain, "content as an ingest would have encoded it"
    with pytest.raises(LeftOut) as caught:
        renderer("qwen2_5", specials="refuse").tokens(record(messages=chat(text, text)), "chat")
    assert caught.value.reason == "special tokens typed"


def test_typed_tokens_of_a_tokenizer_that_begins_texts_with_a_space() -> None:
    tokenizer = tokenizer_of("phi3_5")
    made = renderer("phi3_5").tokens(record(messages=chat("a<|end|> b", "c")), "chat")
    assert made.tokens.tolist().count(tokenizer.specials["<|end|>"]) == 2
    assert (
        tokenizer.decode(made.tokens.tolist()) == "<|user|>\na<|end|> b<|end|>\n<|assistant|>\nc<|end|>\n<|endoftext|>"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_is_there_once_at_most(family: str) -> None:
    bos = golden()["families"][family]["special_tokens"].get("bos_token")
    made = renderer(family).tokens(record(messages=chat("a", "b")), "chat").tokens.tolist()
    assert made.count(tokenizer_of(family).specials.get(bos)) == (family not in ("qwen2_5", "qwen3", "phi3_5"))


def test_shapes_and_their_texts() -> None:
    made = renderer("llama3")
    pair = made.tokens(record("preference", prompt=chat("a"), chosen="b", rejected="c"), "preference")
    assert len(pair.pieces) == 2
    assert trained_text("llama3", pair) == ["b<|eot_id|>", "c<|eot_id|>"]
    ranked = made.tokens(record("ranking", prompt=chat("a"), answers=["b", "c", "d"], ranks=[3, 1, 2]), "ranking")
    assert trained_text("llama3", ranked) == ["c<|eot_id|>", "d<|eot_id|>", "b<|eot_id|>"]
    asked = made.tokens(record("prompts", prompt=chat("a")), "prompts")
    assert not asked.trained.any()
    assert (
        tokenizer_of("llama3")
        .decode(asked.tokens.tolist())
        .endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    )


def test_plain_texts_are_tokenised_whole_between_bos_and_eos() -> None:
    tokenizer = tokenizer_of("llama3")
    made = RecordRenderer(None, tokenizer, bos=7, eos=8)
    found = made.tokens(record("completion", prompt="Hel", completion="lo there<|eot_id|>"), "completion")
    whole = tokenizer.encode_batch(["Hello there<|eot_id|>"])[0].tolist()
    assert found.tokens.tolist() == [7, *whole, 8]
    assert found.trained.tolist()[-1]
    cut = next(i for i, on in enumerate(found.trained) if on)
    assert tokenizer.decode(found.tokens[1:cut].tolist()) in "Hel", "a token over the border is the answer's"
    asked = made.tokens(record("prompts", prompt="Hello"), "prompts")
    assert asked.tokens.tolist() == [7, *tokenizer.encode_batch(["Hello"])[0].tolist()]
    with pytest.raises(ConfigError, match="needs a token that ends it"):
        RecordRenderer(None, tokenizer).tokens(record("completion", prompt="a", completion="b"), "completion")


def test_texts_that_are_too_long_are_refused_dropped_or_cut() -> None:
    long = record(messages=chat("a", "b " * 50))
    with pytest.raises(DataError, match="longer than --max-tokens"):
        renderer("llama3", max_tokens=20).tokens(long, "chat")
    with pytest.raises(LeftOut) as caught:
        renderer("llama3", max_tokens=20, too_long="drop").tokens(long, "chat")
    assert caught.value.reason == "too long"
    made = renderer("llama3", max_tokens=20, too_long="cut").tokens(long, "chat")
    assert (made.pieces, made.notes, bool(made.trained[-1])) == ([20], ("cut",), True)
    with pytest.raises(LeftOut) as caught:
        renderer("llama3", max_tokens=5, too_long="cut").tokens(long, "chat")
    assert caught.value.reason == "no trained token"


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}<|eos|>\n{% endfor %}",
    ],
)
def test_a_template_whose_turn_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(TemplateFault, match="never learn to stop") as caught:
        RecordRenderer(ChatTemplate(text=text, special_tokens={}), ByteTokenizer())
    assert "<|eos|>" in caught.value.remedy
    assert (
        RecordRenderer(
            ChatTemplate(text=text.replace("m.content }}", "m.content }}<|eos|>"), special_tokens={}), ByteTokenizer()
        ).end
        == 257
    )


def test_an_end_that_the_user_typed_is_none() -> None:
    text = "{% for m in messages %}{{ m.content }}{% if not loop.last %}<|eos|>{% endif %}{% endfor %}"
    made = RecordRenderer(
        ChatTemplate(text="{{ raise_exception('no') if messages[0].content == 'a' }}" + text, special_tokens={}),
        ByteTokenizer(),
    )
    with pytest.raises(LeftOut) as caught:
        made.tokens(record(messages=chat("b", "c<|eos|>")), "chat")
    assert caught.value.reason == "no end token"


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(TemplateFault, match="no chat template"):
        RecordRenderer(None, ByteTokenizer()).tokens(record(messages=chat("a", "b")), "chat")


def test_messages_keep_tools_and_calls() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    made = renderer("qwen3").tokens(record(messages=golden()["messages"]["tool"], tools=json.dumps(tools)), "chat")
    text = tokenizer_of("qwen3").decode(made.tokens.tolist())
    assert '{"type": "function", "function": {"name": "weather"}}' in text
    assert '{"name": "weather", "arguments": {"city": "Paris"}}' in text
