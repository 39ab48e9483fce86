"""Turns a YAML tree into dataclasses. An unknown key, or a value of a wrong type, is an error with its place.

Understood types: str, int, float, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], and dataclasses
of these.
"""

import difflib
import re
import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fmscale.config.checks import InvalidField
from fmscale.config.reader.tree import Items, Scalar, Tree, YamlTable
from fmscale.config.schema import settable
from fmscale.errors import ConfigError

INTEGER = re.compile(r"[-+]?\d+(_\d+)*")
NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][-+]?\d+)?")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def convert(tree: Tree, kind: Any, path: str, places: dict[str, str]) -> Any:
    """The value of type `kind` that `tree` holds; `path` is its dotted name.

    `places` gets the place of every dotted name that was read. Raises ConfigError.
    """
    places[path] = tree.place
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if isinstance(tree, Scalar) and tree.null:
            return None
        [inner] = [argument for argument in arguments if argument is not type(None)]
        return convert(tree, inner, path, places)
    if is_dataclass(kind):
        return _dataclass(tree, kind, path, places)
    if origin is tuple:
        items = tree.items if isinstance(tree, Items) else None
        kinds = arguments[:1] * len(items or ()) if arguments[-1] is Ellipsis else arguments
        if items is None or len(items) != len(kinds):
            raise _mismatch(tree, kind, path)
        return tuple(convert(item, kinds[i], f"{path}.{i}", places) for i, item in enumerate(items))
    if origin is dict:
        if not isinstance(tree, YamlTable):
            raise _mismatch(tree, kind, path)
        return {key: convert(value, arguments[1], _join(path, key), places) for key, value in tree.entries.items()}
    return _scalar(tree, kind, path)


def _dataclass(tree: Tree, kind: Any, path: str, places: dict[str, str]) -> Any:
    if isinstance(tree, Scalar) and tree.null:
        tree = YamlTable(entries={}, places={}, place=tree.place)
    if not isinstance(tree, YamlTable):
        raise _mismatch(tree, kind, path)
    hints = get_type_hints(kind)
    readable = {field.name: field for field in settable(kind)}
    for key in tree.entries:
        if key not in readable:
            raise ConfigError(
                f"{tree.places[key]}: unknown key{f' in {path}' if path else ''}",
                found=key,
                remedy=_nearest_key(key, kind, path),
            )
    values: dict[str, Any] = {}
    for name, field in readable.items():
        if name in tree.entries:
            values[name] = convert(tree.entries[name], hints[name], _join(path, name), places)
            places[_join(path, name)] = tree.places[name]
        elif required(field):
            raise ConfigError(
                f"{tree.place}: {_join(path, name)} is missing",
                remedy=f"Give {_join(path, name)}: {describe(hints[name])}.",
            )
    try:
        return kind(**values)
    except InvalidField as error:
        name = _join(path, error.field)
        raise InvalidField(
            name, error.problem, found=error.found, remedy=error.remedy, place=places.get(name, tree.place)
        ) from error


def _scalar(tree: Tree, kind: Any, path: str) -> Any:
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
        elif kind is int and plain and INTEGER.fullmatch(text):
            return int(text)
        elif kind is float and plain and NUMBER.fullmatch(text) and isfinite(float(text)):
            return float(text)
    raise _mismatch(tree, kind, path)


def _mismatch(tree: Tree, kind: Any, path: str) -> ConfigError:
    remedy = ""
    match tree:
        case Scalar(null=True):
            found: object = None
            shown = "nothing"
        case Scalar(quoted=quoted, text=text):
            found, shown = text, "text in quotes" if quoted else "this"
            if choices := _choices(kind):
                remedy = nearest(text, choices) or f"Take one of {', '.join(choices)}."
            elif quoted:
                remedy = "Remove the quotes."
            elif kind is int and NUMBER.fullmatch(text) and float(text).is_integer():
                remedy = f"Write {int(float(text)):_}."
        case Items():
            found, shown = f"a list of {len(tree.items)}", "a list"
        case YamlTable():
            found, shown = f"a mapping with {', '.join(tree.entries)}", "a mapping"
    return ConfigError(
        f"{tree.place}: {path or 'the config'} must be {describe(kind)}, not {shown}",
        found=found,
        remedy=remedy or f"Give {describe(kind)}.",
    )


def describe(kind: Any) -> str:
    """A type in words: `tuple[int, ...]` -> 'a list of integers'."""
    names = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(describe(argument) for argument in arguments)})"
    if origin is tuple:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {describe(arguments[1])}"
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    return f"a mapping with {', '.join(field.name for field in fields(kind))}"


def _choices(kind: Any) -> list[str]:
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def required(field: Field[Any]) -> bool:
    """True for a key without a default."""
    return field.default is MISSING and field.default_factory is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def nearest(text: str, names: Iterable[str]) -> str:
    """A question that proposes the most similar name; empty without a similar name."""
    close = difflib.get_close_matches(text, list(names), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _nearest_key(key: str, kind: Any, path: str) -> str:
    """A hint: the nearest key of this section, or a very similar key of a section below, or all keys of the section."""
    here = [field.name for field in settable(kind)]
    deeper = {name.rsplit(".", 1)[-1]: name for name in dotted_names(kind) if "." in name}
    close = difflib.get_close_matches(key, list(deeper), n=1, cutoff=0.8)
    below = f"Did you mean {_join(path, deeper[close[0]])}?" if close else ""
    return nearest(key, here) or below or f"Valid keys: {', '.join(here)}."


def dotted_names(kind: Any) -> list[str]:
    """All dotted key names below a dataclass, without the keys inside list items and mappings."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for field in settable(kind):
        names.append(field.name)
        if is_dataclass(hints[field.name]):
            names += [f"{field.name}.{name}" for name in dotted_names(hints[field.name])]
    return names
