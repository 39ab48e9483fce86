"""Process that renders templates. Run as a file in Python's isolated mode, it imports jinja2 and nothing of fmscale.

Standard input has a line of limits and a line for each template with its values, standard output a line for each
result, all JSON. The system ends the process at its limit of CPU time.
"""

import functools
import json
import re
import resource
import sys
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

EXPRESSION = re.compile(r"\{\{((?:(?!\}\}|\{\{).)+)\}\}", re.DOTALL)
"""A template that is one expression: its value may be a list or a number."""


@functools.cache
def environment(chat: bool) -> Any:
    """The sandbox: blocks of a chat template leave no white space, as `transformers` has it; others leave their own."""
    extensions = ["jinja2.ext.loopcontrols"] if chat else []
    made = ImmutableSandboxedEnvironment(
        undefined=Undefined if chat else StrictUndefined, trim_blocks=chat, lstrip_blocks=chat,
        keep_trailing_newline=not chat, extensions=extensions,
    )  # fmt: skip
    if chat:
        made.globals["raise_exception"] = _refuse
        made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


@functools.lru_cache(maxsize=256)
def compiled(template: str, chat: bool) -> Any:
    """Function from values to the template's value."""
    whole = EXPRESSION.fullmatch(template)
    if whole and not chat:
        return environment(chat).compile_expression(whole[1], undefined_to_none=False)
    return environment(chat).from_string(template).render


def result(job: dict[str, Any], most: int) -> dict[str, Any]:
    """{"value": ...} or {"error": ...} of a template with values."""
    try:
        value = compiled(job["template"], job["chat"])(**job["values"])
        if isinstance(value, StrictUndefined):
            str(value)  # raises
        if len(json.dumps(value)) > most:
            return {"error": f"more than {most:,} characters"}
        return {"value": value}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Render all that standard input has."""
    limits = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    for line in sys.stdin:
        print(json.dumps(result(json.loads(line), limits["characters"])), flush=True)


if __name__ == "__main__":
    main()
