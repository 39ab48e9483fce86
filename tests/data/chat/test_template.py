"""Templates of strangers: as transformers renders them, in bounded work, without clock, chance or a way out."""

import tracemalloc
from importlib import import_module
from typing import Any

import pytest

from fmscale.data.chat import sandbox
from fmscale.data.chat.template import RefusedMessages, Renderer, TemplateFault
from fmscale.data.tokenizers.protocol import names_of
from fmscale.store.datasets.templates import ChatTemplate
from tests.helpers.chats import chat, golden, template_of

NAMES = names_of(["<|im_end|>", "<|im_start|>", "</s>"])


def renderer(text: str, **tokens: str) -> Renderer:
    return Renderer(ChatTemplate(text=text, special_tokens=tokens))


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3", "gemma", "phi3_5", "cohere", "deepseekv3", "lfm2_v2"])
def test_texts_are_those_of_transformers(family: str) -> None:
    render: Any = import_module("transformers.utils.chat_template_utils").render_jinja_template
    template = template_of(family)
    for name in golden()["families"][family]["chats"]:
        messages = golden()["messages"][name]
        for prompt in (False, True):
            texts, _ = render(
                conversations=[messages],
                chat_template=template.text,
                add_generation_prompt=prompt,
                **template.special_tokens,
            )
            assert Renderer(template).render(messages, add_generation_prompt=prompt) == texts[0]


def test_typed_special_tokens_and_generated_spans_are_marked() -> None:
    text = (
        "{% for m in messages %}<|im_start|>{% generation %}{{ m.content | trim }}</s>{% endgeneration %}{% endfor %}"
    )
    made = renderer(text).marked(chat(" a </s> b", "<|im_start|>"), NAMES)
    assert made.text == "<|im_start|>a </s> b</s><|im_start|><|im_start|></s>"
    assert made.typed == {14, 36}
    assert [made.text[begin:end] for begin, end in made.generated] == ["a </s> b</s>", "<|im_start|></s>"]
    assert renderer(text).render(chat("a")) == "<|im_start|>a</s>"


def test_typed_tokens_in_tools_and_arguments_are_marked_behind_tojson() -> None:
    made = renderer("{{ tools | tojson(ensure_ascii=true) }}{{ messages[0].content }}</s>").marked(
        chat("é"), NAMES, tools=[{"</s>": "é</s>"}]
    )
    assert made.text == '[{"</s>": "\\u00e9</s>"}]é</s>'
    assert made.typed == {3, 17}


def test_a_noncharacter_that_marks_places_is_refused() -> None:
    with pytest.raises(RefusedMessages, match="noncharacter"):
        renderer("{{ messages[0].content }}").marked(chat("a\ufdd0</s>"), NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = y %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ '%1000000000d' % 3 }}",
        "{{ '{:1000000000}'.format(3) }}",
        "{{ ('a' * 60000).replace('a', 'b' * 60000) }}",
        "{{ ('a' * 60000) | replace('a', 'b' * 60000) }}",
        "{{ range(60000) | map('string') | join('b' * 60000) }}",
        "{{ ('b' * 60000).join(range(60000) | map('string')) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(3) }}",
    ],
)
def test_a_template_that_loops_grows_or_breaks_out_is_stopped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MOST_STEPS", 200_000)  # a tenth, so that the test is short
    tracemalloc.start()
    try:
        with pytest.raises(TemplateFault, match="does what no template may") as caught:
            renderer(text).render(chat("a"))
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    assert caught.value.found
    assert "--template" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{% if x", "line 1"),
        ("a\n{{ 3 | random }}", "line 2: No filter named 'random'"),
        ("{{ messages[0].content | center(9) }}", "center"),
        ("a" * (2**20 + 1), "1,048,577 characters"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(text: str, found: str) -> None:
    with pytest.raises(TemplateFault) as caught:
        renderer(text)
    assert found in str(caught.value.found)


@pytest.mark.parametrize(
    ("text", "messages", "found", "remedy"),
    [
        ("{{ raise_exception('no system') }}", chat("a"), "no system", "Change the messages"),
        ("{{ strftime_now('%Y') }}", chat("a"), "strftime_now", "no clock"),
        ("{{ lipsum() }}", chat("a"), "lipsum", "mend the template"),
        ("{{ messages[0].content + 1 }}", chat("a"), "TypeError", "mend the template"),
        ("{% include 'x' %}", chat("a"), "loader", "mend the template"),
    ],
)
def test_messages_that_a_template_cannot_take_are_named(text: str, messages: Any, found: str, remedy: str) -> None:
    with pytest.raises(RefusedMessages) as caught:
        renderer(text).render(messages)
    assert found in str(caught.value.found)
    assert remedy in caught.value.remedy


def test_a_template_asks_for_a_clock_and_takes_its_own_date_without() -> None:
    text = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    assert renderer(text).render(chat("a")) == "26 Jul 2024"


def test_a_long_conversation_is_within_the_bounds() -> None:
    made = Renderer(template_of("qwen3")).render(chat(*["word " * 200] * 1000))
    assert len(made) > 1_000_000
