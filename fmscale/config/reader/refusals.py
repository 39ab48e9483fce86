"""Words of the reader's refusals: types in words, values that do not fit them, the nearest names."""

import difflib
import types
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fmscale.config.kinds import OWN, Own, tagged
from fmscale.config.reader.tree import NUMBER, Items, Scalar, Tree, YamlTable
from fmscale.config.schema import settable
from fmscale.errors import ConfigError

SCALARS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


def mismatch(tree: Tree, kind: Any, path: str) -> ConfigError:
    """The error for a value that is not of type `kind`."""
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
            elif int in (kind, *get_args(kind)) and NUMBER.fullmatch(text) and float(text).is_integer():
                whole = f"{int(float(text)):_}"
                remedy = f"Write {whole}." if fits(whole) else "Take a number of 64 bits, from -2^63 to 2^64 - 1."
        case Items():
            found, shown = f"a list of {len(tree.items)}", "a list"
        case YamlTable():
            found, shown = f"a mapping with {', '.join(tree.entries)}", "a mapping"
    return ConfigError(
        f"{tree.place}: {path or 'the config'} must be {describe(kind)}, not {shown}",
        found=found,
        remedy=remedy or f"Give {describe(kind)}.",
    )


def fits(text: str) -> bool:
    """True if an integer has 64 bits: seeds and counts become numbers of this size."""
    return len(text) < 40 and -(2**63) <= int(text) < 2**64


def unknown_type(tree: Tree, kind: Any, path: str) -> ConfigError:
    """The error for a field, in a class of the user's own, whose type the reader does not understand."""
    return ConfigError(
        f"{tree.place}: {path} has a type that cannot be read from YAML",
        found=str(kind),
        remedy="Take str, int, float, bool, Literal, X | None, tuple[X, ...], dict[str, X], or a dataclass of these.",
    )


def describe(kind: Any) -> str:
    """A type in words: `tuple[int, ...]` -> 'a list of integers'."""
    if kind in SCALARS or kind is type(None):
        return SCALARS.get(kind, "null")
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
    if kind is Own:
        return f"a mapping with kind: {OWN}"
    return f"a mapping with {', '.join(names_in(kind))}" if is_dataclass(kind) else str(kind)


def names_in(kind: Any) -> list[str]:
    """Keys that a section's mapping may have."""
    return [*(["kind"] if tagged(kind) else []), *(field.name for field in settable(kind))]


def _choices(kind: Any) -> list[str]:
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def join(path: str, name: str) -> str:
    """The dotted name of a key below `path`."""
    return f"{path}.{name}" if path else name


def nearest(text: str, names: Iterable[str]) -> str:
    """A question that proposes the most similar name; empty without a similar name."""
    close = difflib.get_close_matches(text, list(names), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def nearest_key(key: str, kind: Any, path: str) -> str:
    """A hint: the nearest key of this section, or a very similar key of a section below, or all keys of the section."""
    here = names_in(kind)
    deeper = {name.rsplit(".", 1)[-1]: name for name in dotted_names(kind) if "." in name}
    close = difflib.get_close_matches(key, list(deeper), n=1, cutoff=0.8)
    below = f"Did you mean {join(path, deeper[close[0]])}?" if close else ""
    return nearest(key, here) or below or (f"Valid keys: {', '.join(here)}." if here else "It has no keys.")


def dotted_names(kind: Any) -> list[str]:
    """Dotted key names below a dataclass, of the default where it has kinds, not those in list items and mappings."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for name in names_in(kind):
        names.append(name)
        hint = hints[name]
        inner = next(iter(tagged(hint).values()), hint)
        if is_dataclass(inner):
            names += [f"{name}.{below}" for below in dotted_names(inner)]
    return names
