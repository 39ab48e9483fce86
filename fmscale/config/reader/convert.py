"""Turns a YAML tree into dataclasses. Every unknown key and every value of a wrong type is told, with its place.

Understood types: str, int, float, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], dataclasses of
these, and unions of dataclasses that the key `kind` tells apart (`kinds.py`).
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, is_dataclass, replace
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fmscale.config.checks import InvalidField, problems_of, together
from fmscale.config.kinds import OWN, Own, options, own_class, tagged
from fmscale.config.reader.refusals import SCALARS, describe, fits, join, mismatch, nearest, nearest_key, unknown_type
from fmscale.config.reader.tree import INTEGER, NUMBER, Items, Scalar, Tree, YamlTable
from fmscale.config.schema import settable
from fmscale.errors import ConfigError

BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

K = TypeVar("K")


def convert(tree: Tree, kind: Any, path: str, places: dict[str, str], told: Any = None) -> Any:
    """The value of type `kind` that `tree` holds; `path` is its dotted name.

    `places` gets the place of every dotted name that was read. Raises ConfigError with all problems; they say the type
    `told`, which has null where the field may have it.
    """
    told = told or kind
    places[path] = tree.place
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(tree, Scalar) and tree.null and type(None) in arguments:
        return None
    if tagged(kind):
        return _tagged(_table(tree, kind, path), kind, path, places)
    if origin in (Union, types.UnionType):
        inner = options(kind)
        if len(inner) > 1:
            raise unknown_type(tree, kind, path)
        return convert(tree, inner[0], path, places, kind)
    if is_dataclass(kind):
        return _dataclass(_table(tree, kind, path), kind, path, places)
    if origin is tuple:
        items = tree.items if isinstance(tree, Items) else None
        kinds = arguments[:1] * len(items or ()) if arguments[-1] is Ellipsis else arguments
        if items is None or len(items) != len(kinds):
            raise mismatch(tree, told, path)
        parts = {i: (item, kinds[i], f"{path}.{i}") for i, item in enumerate(items)}
        return tuple(_convert_all(parts, places).values())
    if origin is dict:
        if not isinstance(tree, YamlTable):
            raise mismatch(tree, told, path)
        values = {key: (value, arguments[1], join(path, key)) for key, value in tree.entries.items()}
        return _convert_all(values, places)
    return _scalar(tree, kind, path, told)


def _convert_all(parts: Mapping[K, tuple[Tree, Any, str]], places: dict[str, str]) -> dict[K, Any]:
    """The value of each (tree, type, path). Raises ConfigError with the problems of all."""
    values: dict[K, Any] = {}
    problems: list[ConfigError] = []
    for key, (tree, kind, path) in parts.items():
        try:
            values[key] = convert(tree, kind, path, places)
        except ConfigError as error:
            problems += problems_of(error)
    if problems:
        raise together(problems)
    return values


def _table(tree: Tree, kind: Any, path: str) -> YamlTable:
    """The mapping of a section; a section without a value has its defaults."""
    if isinstance(tree, Scalar) and tree.null:
        return YamlTable(entries={}, places={}, place=tree.place)
    if not isinstance(tree, YamlTable):
        raise mismatch(tree, kind, path)
    return tree


def _tagged(tree: YamlTable, hint: Any, path: str, places: dict[str, str]) -> Any:
    """The section of the class of `kind`, or of the first. Keys that a file below gave to another kind do not count."""
    word = tree.entries.get("kind")
    cls = _chosen(word, hint, path)
    entries = {key: value for key, value in tree.entries.items() if key != "kind"}
    if word is not None:
        places[join(path, "kind")] = tree.places["kind"]
        below = tree.kind_below
        if tree.older and (below.text if isinstance(below, Scalar) else next(iter(tagged(hint)))) != _text(word):
            entries = {key: value for key, value in entries.items() if key not in tree.older}
    return _dataclass(replace(tree, entries=entries), cls, path, places, _text(word) if word else "")


def _chosen(word: Tree | None, hint: Any, path: str) -> type:
    """The class that `kind` names in a union. Raises ConfigError."""
    classes = tagged(hint)
    if word is None:
        return next(iter(classes.values()))
    text, own = _text(word), Own in options(hint)
    if text in classes:
        return classes[text]
    if own and ":" in text:
        try:
            return own_class(text)
        except InvalidField as error:
            raise _placed(error, path, word.place) from error
    names = " or ".join([*classes, OWN] if own else classes)
    remedy = nearest(text, classes) or f"Take {names}."
    raise ConfigError(f"{word.place}: {join(path, 'kind')} must be {names}, not this", found=text, remedy=remedy)


def _text(word: Tree) -> str:
    return word.text if isinstance(word, Scalar) else ""


def _dataclass(tree: YamlTable, cls: Any, path: str, places: dict[str, str], kind: str = "") -> Any:
    hints = get_type_hints(cls)
    readable = {field.name: field for field in settable(cls)}
    of_kind = f" (kind {kind})" if kind else ""
    problems = [
        ConfigError(
            f"{tree.places[key]}: unknown key{f' in {path}' if path else ''}{of_kind}",
            found=key,
            remedy=nearest_key(key, cls, path),
        )
        for key in tree.entries
        if key not in readable
    ]
    values: dict[str, Any] = {}
    for name, field in readable.items():
        if name in tree.entries:
            try:
                values[name] = convert(tree.entries[name], hints[name], join(path, name), places)
            except ConfigError as error:
                problems += problems_of(error)
            places[join(path, name)] = tree.places[name]
        elif required(field):
            problems.append(
                ConfigError(
                    f"{tree.place}: {join(path, name)} is missing",
                    remedy=f"Give {join(path, name)}: {describe(hints[name])}.",
                )
            )
    if all(name in values for name, field in readable.items() if required(field)):
        return _construct(cls, values, problems, path, places, tree.place)
    raise together(problems)


def _construct(
    cls: Any, values: dict[str, Any], problems: list[ConfigError], path: str, places: dict[str, str], place: str
) -> Any:
    """The section of `values`. Raises ConfigError with `problems` and all values that the section refuses.

    A refused value is left out and the rest is tried again. From the first problem on a default may stand in place of
    what the user meant, so a further refusal counts only if it is about a value as the file has it.
    """
    while True:
        try:
            value = cls(**values)
        except InvalidField as error:
            name = error.field
            if not problems or (name in values and values[name] == error.found):
                problems.append(_placed(error, path, places.get(join(path, name), place)))
            if name in values and not any(field.name == name and required(field) for field in settable(cls)):
                del values[name]
                continue
        except ConfigError as error:
            problems += [] if problems else problems_of(error)
        except Exception as error:
            if cls.__module__.startswith("fmscale."):
                raise
            refused = f"{place}: {path} is refused by {cls.__name__}: {type(error).__name__}: {error}"
            problems += [] if problems else [ConfigError(refused, found=values, remedy="Correct what it names.")]
        else:
            if not problems:
                return value
        raise together(problems)


def _placed(error: InvalidField, path: str, place: str) -> InvalidField:
    """The error of a section with the field's dotted name and its place."""
    placed = InvalidField(join(path, error.field), error.problem, found=error.found, remedy=error.remedy, place=place)
    placed.__cause__ = error
    return placed


def _scalar(tree: Tree, kind: Any, path: str, told: Any) -> Any:
    if kind not in SCALARS and get_origin(kind) is not Literal:
        raise unknown_type(tree, kind, path)
    if isinstance(tree, Scalar) and not tree.null:
        text, plain = tree.text, not tree.quoted
        if get_origin(kind) is Literal:
            for choice in get_args(kind):
                if str(choice) == text or (isinstance(choice, bool) and BOOLEANS.get(text) is choice):
                    return choice
        elif kind is str:
            return text
        elif kind is bool and plain and text in BOOLEANS:
            return BOOLEANS[text]
        elif kind is int and plain and INTEGER.fullmatch(text) and fits(text):
            return int(text)
        elif kind is float and plain and NUMBER.fullmatch(text) and isfinite(float(text)):
            return float(text)
    raise mismatch(tree, told, path)


def required(field: Field[Any]) -> bool:
    """True for a key without a default."""
    return field.default is MISSING and field.default_factory is MISSING
