"""Kinds: the key `kind` of a section chooses a class of a union, or an installed class of the user's own."""

import difflib
import types
from dataclasses import Field, fields, is_dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol, Union, get_args, get_origin, get_type_hints

from fmscale.config.checks import InvalidField

OWN = "package.module:Name"
"""Form of a kind that names a class of the user's own."""


class Own(Protocol):
    """A frozen dataclass of the user's own, where a union has this class; YAML names it as package.module:Name."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def options(hint: Any) -> tuple[Any, ...]:
    """Members of a union except None; any other type alone."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for member in get_args(hint) if member is not type(None))
    return (hint,)


def tag(cls: Any) -> str | None:
    """The `kind: ClassVar[str]` that a dataclass has itself; a subclass does not inherit it."""
    kind = vars(cls).get("kind") if is_dataclass(cls) and isinstance(cls, type) else None
    return kind if isinstance(kind, str) and "kind" not in {field.name for field in fields(cls)} else None


def tagged(hint: Any) -> dict[str, type]:
    """The classes that `kind` chooses from, by their kinds; the first is the default. Empty for any other type."""
    return {kind: cls for cls in options(hint) if (kind := tag(cls)) is not None}


def kind_of(value: object) -> str:
    """The kind by which a config names the class of a section: its tag, or "package.module:Name"."""
    cls = type(value)
    return tag(cls) or f"{cls.__module__}:{cls.__qualname__}"


def own_class(kind: str) -> type:
    """The frozen dataclass that "package.module:Name" names; this imports its module.

    Raises InvalidField for a module that is not installed or fails, and for a name that is not such a class.
    """
    module_name, _, name = kind.partition(":")

    def refuse(problem: str, remedy: str) -> InvalidField:
        return InvalidField("kind", problem, found=kind, remedy=remedy)

    if not all(part.isidentifier() for part in f"{module_name}.{name}".split(".")):
        raise refuse(f"must be {OWN}", "Name the class as Python imports it, such as my_models.towers:Towers.")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = f"Install the package of {error.name} here, or put its folder on PYTHONPATH."
        raise refuse(f"names a module that is not installed, or needs another: {error}", remedy) from error
    except Exception as error:
        remedy = f"`python -c 'import {module_name}'` shows the place."
        raise refuse(f"names a module that cannot be imported: {type(error).__name__}: {error}", remedy) from error
    cls: Any = getattr(module, name, None)
    if not isinstance(cls, type) or not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        close = difflib.get_close_matches(name, [word for word, value in vars(module).items() if is_dataclass(value)])
        remedy = "Write @dataclass(frozen=True, kw_only=True) above the class."
        raise refuse(
            f"names a class that {module_name} does not have" if cls is None else "must name a frozen dataclass",
            f"Did you mean {module_name}:{close[0]}?" if cls is None and close else remedy,
        )
    if "kind" in vars(cls) or "kind" in {field.name for field in fields(cls)}:
        raise refuse("names a class that has a `kind` itself", "Rename that: the key `kind` names the class.")
    try:
        get_type_hints(cls)
    except NameError as error:
        raise refuse(f"names a class whose types are unknown: {error}", "Import them in its module.") from error
    return cls
