"""Jinja for templates of strangers: sandboxed, without clock and chance, with bounded work.

Chat templates have the environment that transformers gives to them; those of tasks and prompts have a strict one. Every
loop, call and filter of a render counts as steps, by the size of what it reads, and no value grows beyond
MOST_CHARACTERS. Steps instead of seconds: a template renders on every machine, or on none.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 2_000_000
"""Steps of a render, some seconds. A conversation of 1,000 messages takes 70,000 with Qwen 3's template."""

MOST_CHARACTERS = 1 << 26
"""Longest text, list or output of a template."""

MOST_NUMBER = 1 << 16
"""Largest number in an argument of a method or filter, such as a width."""

STEP_CHARACTERS = 64
"""Characters or items that a step reads."""

CALL_STEPS = 16
"""Steps of a call: 12 us, where a turn of a loop takes 0.2."""

WIDTH = re.compile(r"\d{5,}|\*")
"""Widths in a format that would make long texts of short ones."""

GENERATION = "\ufdd2\ufdd3"
"""Noncharacters around what a model generates, in a text that is rendered with marks."""

DENIED = frozenset({"random", "pprint", "urlize", "xmlattr", "wordwrap", "center", "format", "filesizeformat"})
"""Filters by chance, and filters that no chat needs and that make long texts of numbers."""

_left: ContextVar[list[int]] = ContextVar("steps left")
marking: ContextVar[bool] = ContextVar("marking", default=False)
"""True while what a model generates gets marks."""


class OverBudget(Exception):
    """A template that does too much work, or makes too long a text."""


class Refusal(jinja2.TemplateError):
    """A call of `raise_exception` in a template."""


def _step(*sizes: int) -> None:
    left = _left.get()
    left[0] -= 1 + sum(sizes) // STEP_CHARACTERS
    if left[0] < 0:
        raise OverBudget(f"more than {MOST_STEPS:,} steps")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, range)) else 0


def _checked(value: Any) -> Any:
    """The value. Raises OverBudget if it is too large."""
    if _size(value) > MOST_CHARACTERS or (isinstance(value, int) and value.bit_length() > MOST_NUMBER):
        raise OverBudget(f"a value of more than {MOST_CHARACTERS:,} characters")
    return value


def _check_product(value: Any, arguments: Iterable[Any]) -> None:
    """Raise OverBudget if an argument could make a too large value: a width, a separator, a replacement."""
    for argument in arguments:
        number = abs(argument) if isinstance(argument, int) else _size(argument)
        if (isinstance(argument, int) and number > MOST_NUMBER) or number * _size(value) > MOST_CHARACTERS:
            raise OverBudget(f"an argument of {number:,} for a value of {_size(value):,} characters")


def _listed(value: Any) -> Any:
    """The value; a list of an iterator's, whose length is not known."""
    return list(_counted(value)) if isinstance(value, Iterator) else value


def _bounded(filter: Callable[..., Any]) -> Callable[..., Any]:
    # With Jinja's mark on the filter that says which context comes before the value.
    place = int(hasattr(filter, "jinja_pass_arg"))

    @wraps(filter)
    def call(*arguments: Any, **options: Any) -> Any:
        value, *rest = map(_listed, arguments[place:])
        _step(_size(value))
        _check_product(value, (*rest, *options.values()))
        return _checked(filter(*arguments[:place], value, *rest, **options))

    return call


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step()
        yield value


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` around what a model generates."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{GENERATION[0]}{text}{GENERATION[1]}" if marking.get() else text


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "+", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _step(_size(left), _size(right))
        if operator == "**" or (operator == "*" and not (_size(left) or _size(right))):
            if any(isinstance(one, int) and abs(one) > MOST_NUMBER**2 for one in (left, right)):
                raise OverBudget(f"the number {left} {operator} {right}")
        elif operator == "*":
            _check_product(left, [right])
            _check_product(right, [left])
        if operator == "**" and isinstance(right, int) and abs(right) > STEP_CHARACTERS:
            raise OverBudget(f"the number {left} ** {right}")
        if operator == "%" and isinstance(left, str) and WIDTH.search(left):
            raise OverBudget(f"the format {left[:40]!r}")
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __callee: Any, *arguments: Any, **options: Any) -> Any:  # noqa: N805
        # The sandbox wraps `format`.
        method = getattr(__callee, "__wrapped__", __callee)
        owner = getattr(method, "__self__", None)
        _step(CALL_STEPS * STEP_CHARACTERS, _size(owner), *map(_size, arguments))
        if isinstance(owner, (str, bytes)):
            arguments = tuple(map(_listed, arguments))
            _check_product(owner, (*arguments, *options.values()))
            if method.__name__ in ("format", "format_map") and WIDTH.search(str(owner)):
                raise OverBudget(f"the format {str(owner)[:40]!r}")
            if method.__name__ == "translate":
                raise OverBudget("str.translate, which templates have no use for")
        return _checked(super().call(__context, __callee, *arguments, **options))


class _Bounds(NodeTransformer):
    """Puts a count into every loop, and a check behind everything that joins texts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), "fmscale_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "fmscale_checked")

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "fmscale_checked")
        return node


def _filtered(node: nodes.Expr | None, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno if node else 1)
    return made


def compiled(text: str) -> jinja2.Template:
    """The chat template of a text. Raises jinja2.TemplateError, with its line."""
    environment = _environment(trim_blocks=True, lstrip_blocks=True)
    return _bounded_template(environment, environment.parse(text))


@lru_cache(maxsize=256)
def compiled_strict(text: str) -> tuple[jinja2.Template, bool]:
    """The template of a text, in which white space stays and undefined names are errors; and True if it is a single
    expression, whose output is JSON. Raises jinja2.TemplateError, with its line.
    """
    environment = _environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    tree = environment.parse(text)
    single = False
    match tree.body:
        case [nodes.Output(nodes=[found]) as output] if not isinstance(found, nodes.TemplateData):
            single, output.nodes = True, [_filtered(found, "fmscale_json")]
    return _bounded_template(environment, tree), single


def _environment(**options: Any) -> _Environment:
    environment = _Environment(optimized=False, extensions=[_Generation, loopcontrols], **options)
    for name in DENIED:
        environment.filters.pop(name, None)
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _bounded(filter) for name, filter in environment.filters.items()}
    environment.filters["fmscale_counted"] = _counted
    environment.filters["fmscale_checked"] = _checked
    environment.filters["fmscale_json"] = _value
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.globals["raise_exception"] = _refuse
    return environment


def _bounded_template(environment: _Environment, tree: nodes.Template) -> jinja2.Template:
    code = environment.compile(_Bounds().visit(tree))
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def run(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """The template's output. Raises OverBudget, and whatever the template raises."""
    token = _left.set([MOST_STEPS])
    try:
        return _joined(template.generate(values))
    finally:
        _left.reset(token)


def run_strict(text: str, values: Mapping[str, Any]) -> Any:
    """The output of a strict template; of a single expression its value, in JSON's types. Raises as `compiled_strict`
    and `run`.
    """
    template, single = compiled_strict(text)
    output = run(template, values)
    return json.loads(output) if single else output


def _joined(texts: Iterable[str]) -> str:
    pieces, size = [], 0
    for piece in texts:
        size += len(piece)
        _step(len(piece))
        if size > MOST_CHARACTERS:
            raise OverBudget(f"more than {MOST_CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _value(value: Any) -> str:
    """JSON of a value; an iterator becomes a list, and an undefined value raises."""
    encoder = json.JSONEncoder(ensure_ascii=False, default=lambda found: list(_counted(found)))
    return _joined(encoder.iterencode(value))


def _refuse(message: object) -> None:
    raise Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without escapes of HTML; marks stay marks."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub(r"\\u(fdd[0-3])", lambda found: chr(int(found[1], 16)), text) if ensure_ascii else text
