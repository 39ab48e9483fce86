"""Reads a config: a YAML file, the files that it extends, and key=value overrides on top.

`extends:` at the top of a file names another file, or a list of files, relative to the file's own folder.
These are read first, in order; then the file itself goes on top. Mappings merge key by key, at every depth;
a list or a single value replaces the value below; null sets null. Overrides come last.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

from fmscale.config.reader.convert import convert
from fmscale.config.reader.refusals import nearest
from fmscale.config.reader.tree import DEPTH, OVERRIDE, Items, Scalar, Tree, YamlTable, merge, parse, put, read_file
from fmscale.config.schema import Config
from fmscale.errors import ConfigError

Section = TypeVar("Section")

FILES = 100
"""Most files that one config reads: twenty files that each name two would else be read a million times."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in the YAML file `path`, with `overrides` such as "data.seed=7" applied.

    A path that does not exist is also looked for among the configs that fmscale ships ("run/NAME", with or
    without ".yaml"). Raises ConfigError with file:line.
    """
    return load_section(Config, read_extended(find_config(path)), overrides)


def load_section(kind: type[Section], tree: YamlTable, overrides: Sequence[str] = ()) -> Section:
    """`tree` with overrides as a dataclass; if the class has a field `places`, it gets the places of the keys."""
    for override in overrides:
        tree = apply_override(tree, override)
    places: dict[str, str] = {}
    value: Section = convert(tree, kind, "", places)
    if hasattr(value, "places"):
        object.__setattr__(value, "places", places)
    return value


def apply_override(tree: YamlTable, override: str) -> YamlTable:
    """`tree` with one dotted "key=value" on top; the value is YAML, and its field decides its type.

    An item of a list is named by its number: "data.sources.0.weight=2".
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys) or len(keys) > DEPTH:
        raise ConfigError("An override must be key=value", found=override, remedy="For example data.seed=7.")
    place = f"{OVERRIDE}{override!r}"
    word = Scalar(text=text if text.strip() else "", quoted=False, place=place)
    value: Tree = word
    if not word.null:
        with suppress(ConfigError):
            value = parse(text, place, lines=False)
    changed = put(tree, keys, value, place)
    assert isinstance(changed, YamlTable)
    return changed


def read_extended(path: Path, above: tuple[Path, ...] = (), left: Iterator[int] | None = None) -> YamlTable:
    """The tree of a file on top of the files that it extends. `above`: the files whose `extends` led to it. `left`
    ends when FILES files have been read.
    """
    left = iter(range(FILES)) if left is None else left
    if next(left, None) is None:
        raise ConfigError(
            f"extends leads to more than {FILES} files, each counted as often as it is read",
            found=str(path),
            remedy="Let each file extend another file once.",
        )
    tree = read_file(path)
    if "extends" not in tree.entries:
        return tree
    bases = tree.entries["extends"]
    names = bases.items if isinstance(bases, Items) else (bases,)
    own = replace(tree, entries={key: value for key, value in tree.entries.items() if key != "extends"})
    base = YamlTable(entries={}, places={}, place=tree.place)
    for name in names:
        base = merge(base, read_extended(_extended_path(name, path, above), (*above, path.resolve()), left))
    return merge(base, own)


def _extended_path(name: Tree, path: Path, above: tuple[Path, ...]) -> Path:
    if not isinstance(name, Scalar) or name.null:
        remedy = "For instance extends: base.yaml, relative to this file."
        raise ConfigError(f"{name.place}: extends must be a path or a list of paths", remedy=remedy)
    target = path.parent / name.text
    if not target.is_file():
        remedy = _nearest_file(target) or f"Paths are relative to {path.parent}."
        raise ConfigError(f"{name.place}: extends a file that does not exist", found=name.text, remedy=remedy)
    chain = (*above, path.resolve(), target.resolve())
    if target.resolve() in chain[:-1]:
        found, remedy = " -> ".join(str(step) for step in chain), "Remove one of the extends."
        raise ConfigError(f"{name.place}: extends comes back to a file it began with", found=found, remedy=remedy)
    return target


def find_config(path: str | Path) -> Path:
    """The file at `path`, or the shipped config of that name. Raises ConfigError with the nearest name."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = shipped_configs()
    for name in (str(path), f"{path}.yaml"):
        if name in shipped:
            return shipped[name]
    hint = _nearest_file(file) or nearest(str(path), shipped)
    runs = ", ".join(name.removesuffix(".yaml") for name in shipped if name.startswith("run/"))
    remedy = hint or f"Give a YAML file, or one that fmscale ships: {runs}."
    raise ConfigError("There is no such config file", found=str(path), remedy=remedy)


def shipped_configs() -> dict[str, Path]:
    """The configs that come with fmscale: path below configs/ -> file."""
    configs: dict[str, Path] = {}
    for root in resources.files("fmscale").joinpath("configs"), Path(__file__).parents[3] / "configs":
        folder = Path(str(root))
        for file in sorted(folder.rglob("*.yaml")) if folder.is_dir() else ():
            configs.setdefault(file.relative_to(folder).as_posix(), file)
    return configs


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else ""
