"""YAML as a tree of nodes without types, each with its file and line.

Scalars keep their text, and their field decides their type (`convert.py`): `1e-4` is a number for a float
field, and `on` is a word for a text field. YAML 1.1's own rules get both wrong.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fmscale.errors import ConfigError

PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map", "merge", "value")
)
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
INTEGER = re.compile(r"[-+]?\d+(_\d+)*")
NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][-+]?\d+)?")
DEPTH, NODES = 64, 100_000
"""Most levels of a file, and most values with aliases written out: nine lines of aliases can stand for 10^9 values."""
OVERRIDE = "override "
"""Begin of the place of a value that no file has."""


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One value as written."""

    text: str
    """The text, without quotes."""
    quoted: bool
    """True for a value in quotes: it is text, never a number, true/false or null."""
    place: str
    """file:line, or the override that set the value."""

    @property
    def null(self) -> bool:
        """True for YAML's null."""
        return not self.quoted and self.text in NULLS


@dataclass(frozen=True, kw_only=True)
class Items:
    """A list."""

    items: tuple["Tree", ...]
    """Its items in order."""
    place: str
    """file:line of its begin."""


@dataclass(frozen=True, kw_only=True)
class YamlTable:
    """A mapping with text keys."""

    entries: dict[str, "Tree"]
    """Values by key, in the order written."""
    places: dict[str, str]
    """file:line of each key."""
    place: str
    """file:line of its begin."""
    older: frozenset[str] = frozenset()
    """Keys that files below gave before `kind` got its value."""
    kind_below: "Tree | None" = None
    """Value of `kind` in these files."""


Tree = Scalar | Items | YamlTable


def parse(text: str, name: str, *, lines: bool = True) -> Tree:
    """The tree of a YAML text; a place is `name`, with the line of the text if `lines`. An empty text is an empty
    mapping.

    Raises ConfigError with file:line for text that is no YAML, duplicate or non-text keys, tags, aliases that contain
    themselves, and for more than DEPTH levels or NODES values.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(
            f"{place}: not valid YAML: {error.problem}", remedy="Check indentation, quotes and brackets."
        ) from error
    except RecursionError as error:
        raise _too_deep(name) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}", remedy="Correct the line that is named.") from error
    if node is None:
        return YamlTable(entries={}, places={}, place=f"{name}:1" if lines else name)
    return _convert(node, lambda node: f"{name}:{node.start_mark.line + 1}" if lines else name, (), iter(range(NODES)))


def _too_deep(place: str) -> ConfigError:
    return ConfigError(f"{place}: values lie in one another too deeply", remedy=f"Use {DEPTH} levels or less.")


def _convert(
    node: yaml.Node, place_of: Callable[[yaml.Node], str], above: tuple[yaml.Node, ...], left: Iterator[int]
) -> Tree:
    """The tree of a node below the nodes `above`; `left` ends when NODES values have been made."""
    place = place_of(node)
    if next(left, None) is None:
        raise ConfigError(
            f"{place}: more than {NODES:_} values, with aliases written out", remedy="Write fewer values or aliases."
        )
    if len(above) > DEPTH:
        raise _too_deep(place)
    if node.tag not in PLAIN_TAGS:
        raise ConfigError(f"{place}: YAML tags are not used here", found=node.tag, remedy="Remove the tag.")
    if any(node is ancestor for ancestor in above):
        raise ConfigError(f"{place}: an alias contains itself", remedy="Write the value out.")
    above = (*above, node)
    match node:
        case yaml.ScalarNode():
            return Scalar(text=node.value, quoted=node.style is not None, place=place)
        case yaml.SequenceNode():
            return Items(items=tuple(_convert(item, place_of, above, left) for item in node.value), place=place)
        case yaml.MappingNode():
            return _mapping(node, place_of, above, left)
    raise AssertionError(f"YAML has no other kind of node: {node}")


def _mapping(
    node: yaml.MappingNode, place_of: Callable[[yaml.Node], str], above: tuple[yaml.Node, ...], left: Iterator[int]
) -> YamlTable:
    entries: dict[str, Tree] = {}
    places: dict[str, str] = {}
    for key, value in node.value:
        where = place_of(key)
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}: a key must be a word", remedy="Use key: value lines.")
        if first := places.get(key.value):
            twice = f"{where}: the key is there twice (first at {first})"
            raise ConfigError(twice, found=key.value, remedy="Keep one of the two.")
        entries[key.value] = _convert(value, place_of, above, left)
        places[key.value] = where
    return YamlTable(entries=entries, places=places, place=place_of(node))


def read_file(path: Path) -> YamlTable:
    """The tree of a YAML file, whose top must be a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8", found=str(error), remedy="Name a YAML file.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", remedy="Check the path and the rights to it."
        ) from error
    tree = parse(text, str(path))
    if not isinstance(tree, YamlTable):
        raise ConfigError(f"{tree.place}: a config is a mapping", remedy="Use key: value lines at the top.")
    return tree


def merge(base: YamlTable, over: YamlTable) -> YamlTable:
    """`over` on top of `base`: mappings merge key by key; a list or scalar replaces the value below."""
    entries, places = dict(base.entries), {**base.places, **over.places}
    for key, value in over.entries.items():
        below = entries.get(key)
        both = isinstance(below, YamlTable) and isinstance(value, YamlTable)
        entries[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    merged = replace(base, entries=entries, places=places, place=over.place, older=base.older - over.entries.keys())
    return _aged(base, merged, base.entries.keys() - over.entries.keys()) if "kind" in over.entries else merged


def _aged(below: YamlTable, above: YamlTable, older: Collection[str]) -> YamlTable:
    """`above`; if its `kind` is another than `below`, the keys of `older` count as keys of that kind."""
    kind, new = below.entries.get("kind"), above.entries["kind"]
    if isinstance(kind, Scalar) and isinstance(new, Scalar) and kind.text == new.text:
        return above
    return replace(above, older=frozenset(older), kind_below=kind)


def put(tree: Tree, keys: list[str], value: Tree, place: str) -> Tree:
    """`tree` with `value` at the path `keys` (a number is an index into a list); missing mappings are created."""
    if not keys:
        return value
    head, rest = keys[0], keys[1:]
    if isinstance(tree, Items):
        if not head.isdecimal() or int(head) >= len(tree.items):
            remedy = f"Items count from 0; the list is at {tree.place}."
            raise ConfigError(f"{place}: no such item in a list of {len(tree.items)}", found=head, remedy=remedy)
        items = list(tree.items)
        items[int(head)] = put(items[int(head)], rest, value, place)
        return replace(tree, items=tuple(items))
    table = tree if isinstance(tree, YamlTable) else YamlTable(entries={}, places={}, place=place)
    below = table.entries.get(head, YamlTable(entries={}, places={}, place=place))
    changed = replace(
        table,
        entries={**table.entries, head: put(below, rest, value, place)},
        places={**table.places, head: table.places.get(head, place) if rest else place},
        older=table.older - {head},
    )
    if keys != ["kind"]:
        return changed
    return _aged(table, changed, {key for key, where in table.places.items() if not where.startswith(OVERRIDE)})
