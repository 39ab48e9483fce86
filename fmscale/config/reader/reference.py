"""Every key of a config, its type, default and meaning, as Markdown: `python -m fmscale.config.reader.reference`."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, is_dataclass
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from fmscale.config.kinds import tag
from fmscale.config.schema import Config, as_tree, settable

HEAD = """# Config

Every key that a YAML file or a `key=value` on the command line may set. Made from the docstrings in
`fmscale/config/` by `python -m fmscale.config.reader.reference > docs/config.md`; a test holds the two equal.

`fmscale config schema > fmscale.schema.json` writes them for editors: a file whose first line is
`# yaml-language-server: $schema=fmscale.schema.json` gets its keys completed, explained and checked.

In a section with kinds the key `kind` chooses the class whose keys follow; without `kind` it is the first. A type
with `Own` also takes `kind: package.module:Name`: an installed frozen dataclass, whose fields are the other keys. A
file that changes `kind` drops the keys that files below gave to the other kind.
"""


def reference() -> str:
    """The page."""
    parts = [HEAD]
    places = [path for _, path in sections(Config, "")]
    for kind, path in sections(Config, ""):
        name = tag(kind)
        rows = [f"| `kind` | | `{name}` | Name of this class. |"] if name else []
        rows += [
            f"| `{field.name}` | {_type(kind, field.name)} | {_default(field)} | {_escaped(meaning)} |"
            for field, meaning in described(kind)
        ]
        title = (f"`{path}`" if path else "Top level") + (f", kind `{name}`" if places.count(path) > 1 else "")
        about = " ".join(inspect.getdoc(kind).split())  # type: ignore[union-attr]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"## {title}\n\n{about}\n\n{table}\n")
    return "\n".join(parts)


def sections(kind: type, path: str) -> Iterator[tuple[type, str]]:
    """The dataclasses below `kind` with their dotted paths, `kind` first."""
    yield kind, path
    hints = get_type_hints(kind)
    for field, _ in described(kind):
        for inner, several in _inner(hints[field.name]):
            yield from sections(inner, f"{path}.{field.name}{several}".lstrip("."))


def _inner(hint: Any, several: str = "") -> Iterator[tuple[type, str]]:
    """The dataclasses in a field's type, each with "[]" if it is an item of a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint, several
    for inner in get_args(hint):
        yield from _inner(inner, "[]" if get_origin(hint) is tuple else several)


def described(kind: type) -> Iterator[tuple[Field[Any], str]]:
    """The fields that a file may set, each with its docstring on one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for node, after in pairwise(definition.body):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    for field in settable(kind):
        yield field, texts[field.name]


def _type(kind: type, name: str) -> str:
    annotation = inspect.get_annotations(kind)[name]
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    text = re.sub(r"\b([a-z_]+\.)+(?=[A-Z])", "", annotation.__name__ if plain else str(annotation))
    return _escaped(f"`{text}`")


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = as_tree(field.default)
        return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return "required" if field.default_factory is MISSING else "its own defaults"


if __name__ == "__main__":
    sys.stdout.write(reference())
