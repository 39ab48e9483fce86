"""Every error for a user has a remedy that cannot be empty (P9)."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fmscale
from fmscale import errors

PACKAGES = (
    Path(fmscale.__file__).parent,
    Path(fmscale.__path__[-1], "kernels"),
    Path(fmscale.__path__[-1], "launch"),
)
FILES = [path for folder in PACKAGES for path in sorted(folder.rglob("*.py"))]
Function = ast.FunctionDef
DEPTH = 5
"""More than the ancestors of any error."""


def without_remedy(sources: dict[str, str]) -> list[str]:
    """place:line of each error that is made without a remedy, or with a remedy that may be empty."""
    functions: dict[str, list[Function]] = defaultdict(list)
    classes, calls = [], []
    for place, source in sources.items():
        for node, scope in scoped(ast.parse(source)):
            if isinstance(node, Function):
                functions[node.name].append(node)
            elif isinstance(node, ast.ClassDef):
                classes.append(node)
            elif isinstance(node, ast.Call):
                calls.append((place, node, scope))
    kinds, starts = asking(classes)
    found = []
    for place, call, scope in calls:
        remedy = [word.value for word in call.keywords if word.arg == "remedy"]
        spread = any(word.arg is None for word in call.keywords)
        above = name_of(call.func) == "__init__" and scope in starts
        missing = not remedy and not spread and (above or name_of(call.func) in kinds)
        if missing or not all(says(one, scope, functions) for one in remedy):
            found.append(f"{place}:{call.lineno}")
    return found


def asking(classes: list[ast.ClassDef]) -> tuple[set[str], list[Function]]:
    """Names of the errors that take their remedy as an argument, and every `__init__` of an error."""
    kinds, own, starts = {"FmscaleError"}, set[str](), []
    for _ in range(DEPTH):
        kinds |= {one.name for one in classes if kinds & {name_of(base) for base in one.bases}}
    for one in classes:
        for node in one.body:
            if one.name in kinds - {"FmscaleError"} and isinstance(node, Function) and node.name == "__init__":
                starts.append(node)
                if "remedy" not in [word.arg for word in node.args.kwonlyargs]:
                    own.add(one.name)
    return kinds - own, starts


def scoped(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Every node, with the innermost function that it is in, or the module."""
    left: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while left:
        node, scope = left.pop()
        yield node, scope
        inner = node if isinstance(node, Function) else scope
        left += [(child, inner) for child in ast.iter_child_nodes(node)]


def name_of(node: ast.AST) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")


def says(node: ast.expr, scope: ast.AST, functions: dict[str, list[Function]]) -> bool:
    """True for a text that provably is not empty."""
    match node:
        case ast.Constant(value=str(text)):
            return bool(text.strip())
        case ast.JoinedStr(values=values):
            return any(says(value, scope, functions) for value in values)
        case ast.BinOp(left=left, right=right):
            return says(left, scope, functions) or says(right, scope, functions)
        case ast.BoolOp(op=ast.Or(), values=values):
            return says(values[-1], scope, functions)
        case ast.IfExp(body=body, orelse=other):
            return says(body, scope, functions) and says(other, scope, functions)
        case ast.Call(func=ast.Attribute(attr="get"), args=[_, default]):
            return says(default, scope, functions)
        case ast.Call(func=func):
            made = functions.get(name_of(func), [])
            return bool(made) and all(says(one, f, functions) for f in made for one in returned(f))
        case ast.Name(id=name):
            given = [value for value in map(value_given(name), ast.walk(scope)) if value is not None]
            return all(says(value, scope, functions) for value in given)
        case ast.Subscript() | ast.Attribute():
            return "remedy" in ast.unparse(node) or name_of(getattr(node, "value", node)).isupper()
    return False


def value_given(name: str) -> Callable[[ast.AST], ast.expr | None]:
    """The value that a node assigns to a variable of that name, or gives as a parameter's default; else None."""

    def value(node: ast.AST) -> ast.expr | None:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return value
            case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                return value
            case ast.arguments():
                named = [*node.posonlyargs, *node.args]
                pairs = [
                    *zip(node.kwonlyargs, node.kw_defaults, strict=True),
                    *zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True),
                ]
                return next((default for one, default in pairs if one.arg == name), None)
        return None

    return value


def returned(function: Function) -> list[ast.expr]:
    return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]


def test_every_error_has_a_remedy() -> None:
    assert len(FILES) > 200
    sources = {str(path): path.read_text() for path in FILES}
    assert without_remedy(sources) == []


HINT = 'def hint(): return ""\ndef sure(): return hint() or "Do x."\n'


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        ('raise ConfigError("x", found=1)', True),
        ('raise ConfigError("x", remedy="")', True),
        ('raise ConfigError("x", remedy="Do x.")', False),
        ('raise errors.DataError("x")', True),
        ('other("x", remedy=f"{name}")', True),
        ('raise ConfigError("x", remedy=f"Take {name}.")', False),
        ('raise ConfigError("x", remedy=hint())', True),
        ('raise ConfigError("x", remedy=sure())', False),
        ('raise ConfigError("x", remedy=unknown())', True),
        ('raise ConfigError("x", remedy="a" if name else "")', True),
        ('text = hint()\nraise ConfigError("x", remedy=text)', True),
        ('text = hint()\nraise ConfigError("x", remedy=text or "Do x.")', False),
        ('def f(remedy=""):\n    raise ConfigError("x", remedy=remedy)', True),
        ('def f(remedy):\n    raise ConfigError("x", remedy=remedy)', False),
        ('raise Later("x")', True),
        ('raise Own("x")', False),
        ('raise Own()\nclass Own(DataError):\n    def __init__(self): super().__init__("x")', True),
    ],
)
def test_an_error_without_a_remedy_is_seen(made: str, seen: bool) -> None:
    classes = Path(errors.__file__).read_text()
    more = (
        "class Later(DataError): pass\n"
        'class Own(DataError):\n    def __init__(self): super().__init__("x", remedy="Do x.")\n'
    )
    found = without_remedy({"errors": classes, "more": more + HINT, "made": made})
    assert bool(found) == seen
