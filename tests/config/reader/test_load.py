"""Users' configs: values that are read, and mistakes shown with file, line and remedy."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fmscale.config
from fmscale.config import BatchConfig, Config, DataConfig, SourceConfig, StoreConfig, as_yaml, load_config
from fmscale.config.reader.load import load_section, shipped_configs
from fmscale.config.reader.tree import YamlTable, parse
from fmscale.errors import ConfigError

GOOD = """\
store:
  url: s3://bucket/prefix
data:
  sequence_length: 1_024
  sources:
    - dataset: docs
      weight: 3
    - {dataset: code, commits: [1, 2]}
batch: {global_batch: 512, micro_batch: 4}
"""


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def error_of(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value


def test_reads_every_section(write: Write) -> None:
    config = load_config(write(GOOD))
    assert config == Config(
        store=StoreConfig(url="s3://bucket/prefix"),
        data=DataConfig(
            sources=(SourceConfig(dataset="docs", weight=3.0), SourceConfig(dataset="code", commits=(1, 2))),
            sequence_length=1024,
        ),
        batch=BatchConfig(global_batch=512, micro_batch=4),
    )
    assert config.place("data.sequence_length").endswith("run.yaml:4: data.sequence_length")
    assert config.place("batch.accumulation") == "batch.accumulation"


@pytest.mark.parametrize(
    ("old", "new", "line", "cause", "found", "remedy"),
    [
        ("sequence_length:", "sequence_lenght:", 4, "unknown key in data", "sequence_lenght", "length?"),
        ("store:", "stor:", 1, "unknown key", "stor", "Did you mean store?"),
        ("store:", "sequence_length: 8\nstore:", 1, "unknown key", "sequence_length", "data.sequence_len"),
        ("store:", "xyzzy: 8\nstore:", 1, "unknown key", "xyzzy", "Valid keys: store, data, batch"),
        ("weight: 3", "wieght: 3", 7, "unknown key in data.sources.0", "wieght", "Did you mean weight?"),
        ("dataset: docs", "split: test", 6, "data.sources.0.dataset is missing", None, "Give data"),
        ("1_024", "long", 4, "data.sequence_length must be an integer, not this", "long", "an integer"),
        ("1_024", "'1024'", 4, "must be an integer, not text in quotes", "1024", "Remove the quotes."),
        ("1_024", "1e3", 4, "must be an integer", "1e3", "Write 1_000."),
        ("1_024", "null", 4, "must be an integer, not nothing", None, "Give an integer."),
        ("1_024", "[1]", 4, "must be an integer, not a list", "a list of 1", "Give an integer."),
        ("1_024", "0", 4, "data.sequence_length must be at least 1", 0, "Give 1 or more."),
        ("1_024", "8\n  on_corrupt: quarantin", 5, "one of quarantine, stop", "quarantin", "quarantine?"),
        ("1_024", "8\n  cache_dir: {a: b}", 5, "must be text or null, not a mapping", "a mapping with a", "text"),
        ("weight: 3", "weight: many", 7, "sources.0.weight must be a number", "many", "a number"),
        ("weight: 3", "weight: 0", 7, "data.sources.0.weight must be above 0", 0.0, "Remove the source"),
        ("commits: [1, 2]", "commits: 1", 8, "must be a list, each item an integer", "1", ""),
        ("  sequence_length", "  seed: 1\n  seed: 2\n  sequence_length", 5, "twice (first", "seed", "one"),
        ("1_024", "!!python/object:a.b 1", 4, "YAML tags", "tag:yaml.org,2002:python/object:a.b", ""),
        ("1_024", "&a [*a]", 4, "an alias contains itself", None, "Write the value out."),
        ("1_024", "[1", 5, "not valid YAML", None, "brackets"),
        ("  url", "  [1]: 2\n  url", 2, "a key must be a word", None, "key: value"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_with_file_line_and_remedy(
    write: Write, old: str, new: str, line: int, cause: str, found: object, remedy: str
) -> None:
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    error = error_of(path)
    assert error.cause.startswith(f"{path}:{line}: ")
    assert cause in error.cause
    assert error.found == found
    assert remedy in error.remedy


def test_files_that_are_no_config(write: Write, tmp_path: Path) -> None:
    assert error_of(write("- 1")).cause == f"{tmp_path}/run.yaml:1: a config is a mapping"
    assert "data is missing" in error_of(write("")).cause
    (tmp_path / "latin.yaml").write_bytes(b"store: \xff")
    assert "UTF-8" in error_of(tmp_path / "latin.yaml").cause
    missing = error_of(tmp_path / "rum.yaml")
    assert (missing.found, missing.remedy) == (
        f"{tmp_path}/rum.yaml",
        f"Did you mean {tmp_path}/run.yaml?",
    )
    remedy = error_of(tmp_path / "nowhere" / "nosuch.yaml").remedy
    assert re.search(r"Give a YAML file, or one that fmscale ships: .*run/laptop", remedy)


def test_overrides_are_typed_by_the_field(write: Write) -> None:
    config = load_config(
        write(GOOD),
        [
            "data.seed=7",
            "store.url=s3://b/p?endpoint=http://h:1&region=r",
            "data.cache_dir=null",
            "data.sources.1.weight=1e-1",
            "data.sources.1.commits=[3]",
            "store.deadline=2",
            "batch={micro_batch: 2, accumulation: 3}",
        ],
    )
    assert (config.data.seed, config.store.url) == (7, "s3://b/p?endpoint=http://h:1&region=r")
    assert config.data.cache_dir is None
    assert config.data.sources[1] == SourceConfig(dataset="code", weight=0.1, commits=(3,))
    assert config.store.deadline == 2.0
    assert config.batch == BatchConfig(micro_batch=2, accumulation=3)


@pytest.mark.parametrize(
    ("override", "cause", "remedy"),
    [
        ("data.sede=7", "override 'data.sede=7': unknown key in data", "Did you mean seed?"),
        ("data.seed=# 7", "override 'data.seed=# 7': data.seed must be an integer, not a mapping", "Give an integer."),
        ("data.seed=x", "override 'data.seed=x': data.seed must be an integer", "Give an integer."),
        (
            "data.seed=",
            "override 'data.seed=': data.seed must be an integer, not nothing",
            "Give an integer.",
        ),
        ("data.window=0", "override 'data.window=0': data.window must be at least 1", "Give 1 or more."),
        ("train.steps=0", "train.steps must be at least 1", "Give 1 or more."),
        ("train.seconds=-5", "train.seconds must be above 0", "or null for no limit"),
        ("train.comm_seconds=-1", "train.comm_seconds must be above 0", "Give a number above 0."),
        ("optimizer.eps=-1", "optimizer.eps must be above 0", "Give a number above 0."),
        ("optimizer.lr=-1", "optimizer.lr must be above 0", "Give a number above 0."),
        ("data.sources.2.weight=1", "no such item in a list of 2", "Items count from 0; the list is at"),
        ("data.seed", "An override must be key=value", "For example"),
        ("=3", "An override must be key=value", "For example"),
    ],
)
def test_a_wrong_override_is_named(write: Write, override: str, cause: str, remedy: str) -> None:
    error = error_of(write(GOOD), override)
    assert cause in error.cause
    assert remedy in error.remedy


def test_extends_merges_mappings_and_replaces_the_rest(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(GOOD, "data/base.yaml")
    write("data: {window: 64, seed: 1}\n", "data/other.yaml")
    path = write("extends: [data/base.yaml, data/other.yaml]\ndata:\n  seed: 2\n  sources: [dataset: own]\n")
    config = load_config(path, ["data.window=128"])
    assert config.store.url == "s3://bucket/prefix"
    assert (config.data.sequence_length, config.data.window, config.data.seed) == (1024, 128, 2)
    assert config.data.sources == (SourceConfig(dataset="own"),)
    write(GOOD.replace("sequence_length", "sequence"), "data/base.yaml")
    assert error_of(path).cause.startswith(f"{tmp_path}/data/base.yaml:4: unknown key in data")


def test_extends_that_cannot_be_followed(write: Write, tmp_path: Path) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: sub/../a.yaml\n", "b.yaml")
    (tmp_path / "sub").mkdir()
    error = error_of(tmp_path / "a.yaml")
    assert error.cause == f"{tmp_path}/b.yaml:1: extends comes back to a file it began with"
    assert error.found == " -> ".join(str(tmp_path / name) for name in ("a.yaml", "b.yaml", "a.yaml"))
    error = error_of(write("store: {}\nextends: aa.yaml\n"))
    assert (error.found, error.remedy) == ("aa.yaml", f"Did you mean {tmp_path}/a.yaml?")
    assert error.cause.startswith(f"{tmp_path}/run.yaml:2: extends a file that does not exist")
    assert "a path or a list of paths" in error_of(write("extends: {a: b}")).cause


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Every:
    flag: bool = False
    level: Literal[1, 2, "high"] = 1
    pair: tuple[float, float] = (0.0, 0.0)
    names: tuple[str, ...] | None = None
    table: dict[str, Inner | None] | None = None


def read_every(text: str) -> Every:
    tree = parse(text, "f")
    assert isinstance(tree, YamlTable)
    return load_section(Every, tree)


def test_every_type() -> None:
    assert read_every(
        "flag: true\nlevel: 2\npair: [1, -.5e1]\nnames: [on, 1, 'null']\ntable: {a: {size: +1_0}, b: null}"
    ) == Every(
        flag=True,
        level=2,
        pair=(1.0, -5.0),
        names=("on", "1", "null"),
        table={"a": Inner(size=10), "b": None},
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("flag: yes", "flag must be true or false"),
        ("level: 3", "level must be one of 1, 2, high"),
        ("pair: [1]", "pair must be a list of 2 (a number, a number)"),
        ("pair: [1, nan]", "pair.1 must be a number"),
        ("pair: [1, e5]", "pair.1 must be a number"),
        ("pair: [1, 1e999]", "pair.1 must be a number"),
        ("names: {a: 1}", "names must be a list, each item text"),
        ("table: {a: {sise: 1}}", "unknown key in table.a"),
        ("table: [1]", "table must be a mapping, each value a mapping with size or null"),
        ("table: {a: 3}", "table.a must be a mapping with size"),
    ],
)
def test_every_type_refuses_others(text: str, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_every(text)
    assert cause in caught.value.cause


@settings(max_examples=30, deadline=None)
@example(name="a\x85b", weight=1.0, seed=None, directory="\u2028")
@given(
    name=st.text(min_size=1),
    weight=st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
    seed=st.none() | st.integers(),
    directory=st.none() | st.text(),
)
def test_a_config_written_as_yaml_reads_back_equal(
    name: str, weight: float, seed: int | None, directory: str | None
) -> None:
    source = SourceConfig(dataset=name, weight=weight, seed=seed, commits=(1,))
    config = Config(data=DataConfig(sources=(source,), cache_dir=directory))
    tree = parse(as_yaml(config), "f")
    assert isinstance(tree, YamlTable)
    assert load_section(Config, tree) == config


def test_shipped_configs_are_valid_and_found_by_name() -> None:
    for name, path in shipped_configs().items():
        if name.startswith("run/"):
            assert load_config(name.removesuffix(".yaml")) == load_config(path)


def test_every_field_has_a_docstring() -> None:
    bare = []
    for name in fmscale.config.__all__:
        kind = getattr(fmscale.config, name)
        if not is_dataclass(kind):
            continue
        source = Path(sys.modules[kind.__module__].__file__ or "").read_text()
        body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if (
                isinstance(node, ast.AnnAssign)
                and ast.unparse(node.annotation) != "ClassVar[str]"
                and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
            ):
                bare.append(f"{name}.{ast.unparse(node.target)}")
    assert bare == []


def test_config_imports_no_torch_and_the_reader_at_its_first_use() -> None:
    code = "import sys, fmscale.config as c; print({'torch', 'yaml'} & {*sys.modules}, c.load_config.__module__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set() fmscale.config.reader.load\n"
