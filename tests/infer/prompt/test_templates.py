"""Templates: values, and the limits of the sandbox."""

import pytest

from fmscale.data.chat import sandbox
from fmscale.errors import ConfigError
from fmscale.infer.prompt.templates import fill


def test_texts_and_values() -> None:
    fields = {"question": "1 + 1?", "options": ["2", "é"], "n": 1}
    wanted = {
        "Q: {{ question }}\n": "Q: 1 + 1?\n",
        "{{ options }}": ["2", "é"],
        "{{ options | map('upper') }}": ["2", "É"],
        "{{ n }}": 1,
        "{{ n }} ": "1 ",
        "{{ '' }}": "",
        "a": "a",
        "": "",
        " {% if n %}\na{% endif %}": " \na",
    }
    assert {text: fill("x", text, fields) for text in wanted} == wanted


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ absent }}", "t.yaml, text: the template fails: found \"UndefinedError: 'absent' is undefined\""),
        ("a {{ absent }}", "'absent' is undefined"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ fill }}{{ n.append(2) }}", "SecurityError"),
        ("{{ range }}", "not iterable"),
        ("{{ 'a' * 9000000 }}", "OverBudget: an argument of 9,000,000"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 99 steps"),
        ("{{ [['a' * 9000] * 9000] * 9 }}", "OverBudget: more than 99 steps"),
    ],
)
def test_a_template_that_fails_or_loops_is_refused(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "MOST_STEPS", 99)
    with pytest.raises(ConfigError) as caught:
        fill("t.yaml, text", template, {"n": [1], "fill": ""})
    assert message in str(caught.value)
    assert "Use the fields" in caught.value.remedy


def test_a_value_is_bounded_with_all_that_it_contains() -> None:
    with pytest.raises(ConfigError, match="more than 67,108,864 characters"):
        fill("x", "{{ [['a' * 9000] * 9000] * 9 }}", {})
