"""The config as a JSON Schema (draft 2020-12), by which editors complete, explain and check a YAML file.

A file may leave out keys of its base. Only items of lists require keys, as a list replaces the whole list below it.
"""

import types
from dataclasses import MISSING, Field, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fmscale.config.kinds import OWN, Own, tag, tagged
from fmscale.config.reader.convert import required
from fmscale.config.reader.reference import described
from fmscale.config.reader.tree import INTEGER, NUMBER
from fmscale.config.schema import Config, as_tree

NULL = {"type": "null"}
SCALARS: dict[type, dict[str, Any]] = {
    type(None): NULL,
    # A text field takes any scalar as text: `run: 8` is a run named "8".
    str: {"type": ["string", "number", "boolean"]},
    bool: {"type": "boolean"},
    # Editors read 1_000 as text.
    int: {"type": ["integer", "string"], "pattern": f"^{INTEGER.pattern}$"},
    float: {"type": ["number", "string"], "pattern": f"^{NUMBER.pattern}$"},
    Own: {
        "type": "object",
        "properties": {"kind": {"description": f"A class of your own: {OWN}.", "type": "string", "pattern": ":"}},
        "required": ["kind"],
    },
}
EXTENDS = {
    "description": "A file, or a list of them, relative to this file; they are read first, this file goes on top.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def json_schema() -> dict[str, Any]:
    """The schema of a whole config file."""
    schema = _section(Config, whole=False)
    schema["properties"]["extends"] = EXTENDS
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fmscale config", **schema}


def _section(kind: Any, *, whole: bool, named: bool = False) -> dict[str, Any]:
    """The schema of a dataclass; `whole` if no other file can give missing keys, `named` if it needs its `kind`."""
    hints = get_type_hints(kind)
    keys = {field.name: (field, meaning) for field, meaning in described(kind)}
    properties = {name: _key(field, hints[name], meaning) for name, (field, meaning) in keys.items()}
    if name := tag(kind):
        properties = {"kind": {"description": "Name of this class.", "enum": [name]}, **properties}
    needed = [name for name, (field, _) in keys.items() if whole and required(field)]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if whole or named:
        schema["required"] = [*(["kind"] if named else []), *needed]
    return schema


def _key(field: Field[Any], hint: Any, meaning: str) -> dict[str, Any]:
    default = {} if field.default is MISSING else {"default": as_tree(field.default, hint)}
    if is_dataclass(hint) or tagged(hint):
        section = _value(hint, whole=False)
        # A section without a value has its defaults.
        return {"description": meaning, **default, "anyOf": [*section.get("anyOf", [section]), NULL]}
    return {"description": meaning, **default, **_value(hint)}


def _value(hint: Any, *, whole: bool = True, named: bool = False) -> dict[str, Any]:
    """The schema of a type, `whole` and `named` as in `_section`. A union's first class with a kind needs no `kind`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        later = list(tagged(hint).values())[1:]
        return {"anyOf": [_value(option, whole=whole, named=option in later) for option in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = [_value(item) for item in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1])}
    return _section(hint, whole=whole, named=named) if is_dataclass(hint) else SCALARS[hint]
