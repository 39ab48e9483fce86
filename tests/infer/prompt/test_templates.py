"""Templates: values, the sandbox, and its limits."""

import pytest

from fmscale.errors import ConfigError
from fmscale.infer.prompt import templates
from fmscale.infer.prompt.templates import Job, render


def test_texts_and_values() -> None:
    fields = {"question": "1 + 1?", "options": ["2", "3"], "n": 1}
    jobs = [Job("x", template, fields) for template in ("Q: {{ question }}\n", "{{ options }}", "{{ n }}", "{{ n }} ")]
    assert render(jobs) == ["Q: 1 + 1?\n", ["2", "3"], 1, "1 "]
    assert render([Job("x", "{% if n %}\na{% endif %}\n", fields, chat=True)]) == ["a"]
    assert render([]) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ absent }}", "t.yaml, text: the template fails: found \"UndefinedError: 'absent' is undefined\""),
        ("a {{ absent }}", "'absent' is undefined"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 'a' * 9000000 }}", "more than 4,194,304 characters"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within 1 CPU",
            marks=pytest.mark.slow,
        ),
        ("{{ ('a' * 2000000000)|length }}", "MemoryError"),
    ],
)
def test_a_template_that_fails_or_loops_is_refused(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    with pytest.raises(ConfigError) as caught:
        render([Job("t.yaml, text", "fine", {}), Job("t.yaml, text", template, {"n": 1})])
    assert message in str(caught.value)
