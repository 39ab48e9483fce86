"""Sections of several kinds, and classes of the user's own, in a package that is installed beside fmscale."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fmscale.config import DataConfig, ModelConfig, NextTokenConfig, as_tree, as_yaml, kind_of, load_config
from fmscale.config.checks import InvalidField, above_zero
from fmscale.config.kinds import Own
from fmscale.config.reader.json_schema import json_schema
from fmscale.config.reader.load import load_section, read_extended
from fmscale.config.reader.tree import YamlTable, parse
from fmscale.errors import ConfigError
from tests.config.reader.test_json_schema import fits

OWN = """
from dataclasses import dataclass, field

@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1

@dataclass(frozen=True, kw_only=True)
class Towers:
    width: int
    depth: int = 2
    image: Inner = field(default_factory=Inner)
    sides: tuple[int, ...] = ()
    area: int = field(init=False, default=0)

    def __post_init__(self):
        if self.width < 0:
            raise ValueError("width below 0")
        object.__setattr__(self, "area", self.width * self.depth)

@dataclass
class Thawed:
    width: int = 1

@dataclass(frozen=True)
class Odd:
    paths: list[int]

@dataclass(frozen=True)
class Named:
    kind: str = "a"

@dataclass(frozen=True)
class Unknown:
    width: "Nowhere" = 1

plain = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "site" / "my_models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "towers.py").write_text(OWN)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needing.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_models"]:
        del sys.modules[name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, "data: {sources: [{dataset: docs}]}\n")


def write(folder: Path, text: str, name: str = "base.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def error_of(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value


@dataclass(frozen=True, kw_only=True)
class Round:
    """A circle."""

    kind: ClassVar[str] = "round"
    """Name."""

    radius: float = 1.0
    """Half of its width."""

    def __post_init__(self) -> None:
        above_zero(self, "radius")


@dataclass(frozen=True, kw_only=True)
class Cornered:
    """A polygon."""

    kind: ClassVar[str] = "cornered"
    """Name."""

    corners: int
    """Number of corners."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Shapes."""

    shape: Round | Cornered = field(default_factory=Round)
    """A shape."""
    frame: Round | Cornered | None = None
    """A frame."""
    more: tuple[Cornered | Round | Own, ...] = ()
    """More shapes."""


def drawing(text: str) -> Drawing:
    tree = parse(text, "f")
    assert isinstance(tree, YamlTable)
    return load_section(Drawing, tree)


def test_kind_chooses_and_without_it_the_first_class_is_meant() -> None:
    text = "shape: {radius: 2}\nframe: {kind: cornered, corners: 3}\nmore: [{corners: 4}, {kind: round}]"
    read = drawing(text)
    assert read == Drawing(
        shape=Round(radius=2.0), frame=Cornered(corners=3), more=(Cornered(corners=4), Round(radius=1.0))
    )
    assert drawing("shape:\nframe:") == Drawing()
    assert as_tree(read)["more"] == [{"kind": "cornered", "corners": 4}, {"kind": "round", "radius": 1.0}]
    assert drawing(as_yaml(read)) == read


@pytest.mark.parametrize(
    ("text", "cause", "found", "remedy"),
    [
        ("shape: {kind: rond}", "f:1: shape.kind must be round or cornered, not this", "rond", "Did you mean round?"),
        ("shape: {kind: my:Shape}", "f:1: shape.kind must be round or cornered", "my:Shape", "Take round or cornered."),
        ("shape: {kind: [1]}", "shape.kind must be round or cornered", "", "Take round or cornered."),
        ("shape: {kind: round, radus: 1}", "f:1: unknown key in shape (kind round)", "radus", "Did you mean radius?"),
        ("shape: {kind: round, corners: 1}", "unknown key in shape (kind round)", "corners", "keys: kind, radius."),
        ("shape: {knd: round}", "unknown key in shape", "knd", "Did you mean kind?"),
        ("frame: {kind: cornered}", "frame.corners is missing", None, "Give frame.corners: an integer."),
        ("more: [{kind: round, radius: 0}]", "f:1: more.0.radius must be above 0", 0.0, "above 0"),
        ("shape: 3", "shape must be a mapping with kind, radius or a mapping with kind, corners", "3", ""),
    ],
)
def test_a_wrong_kind_and_a_wrong_key_of_a_kind(text: str, cause: str, found: object, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drawing(text)
    assert cause in caught.value.cause
    assert caught.value.found == found
    assert remedy in caught.value.remedy


def test_our_sections_name_their_kinds_and_old_files_read_on(path: Path, tmp_path: Path) -> None:
    old = write(tmp_path, "extends: base.yaml\nmodel: {dim: 96}\noptimizer: {lr: 1}\n", "old.yaml")
    new = write(
        tmp_path,
        "extends: base.yaml\nmodel: {kind: decoder, dim: 96}\noptimizer: {kind: adamw, lr: 1}\n"
        "objective: {kind: next_token}\n",
        "new.yaml",
    )
    config = load_config(old)
    assert load_config(new) == config
    assert (kind_of(config.model), kind_of(config.objective), kind_of(config.optimizer)) == (
        "decoder",
        "next_token",
        "adamw",
    )
    assert load_config(write(tmp_path, as_yaml(config), "again.yaml")) == config
    assert as_tree(config)["model"]["kind"] == "decoder"
    assert as_tree(config.optimizer)["kind"] == "adamw"
    assert "must be adamw, not this" in error_of(path, "optimizer.kind=my_models.towers:Towers").cause
    error = error_of(path, "objective.kind=nxt_token")
    assert error.cause == (
        "override 'objective.kind=nxt_token': objective.kind must be next_token or dpo or ipo or kto or orpo or "
        "simpo or reward or package.module:Name, not this"
    )
    assert error.remedy == "Did you mean next_token?"
    assert load_section(ModelConfig, read_extended(write(tmp_path, "dim: 96\n", "m.yaml"))) == config.model


def test_a_class_of_the_users_own_is_read_as_ours_are(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["model={kind: my_models.towers:Towers, width: 3, image: {size: 4}, sides: [1, 2]}"])
    model: Any = config.model
    assert (model.width, model.depth, model.image.size, model.sides, model.area) == (3, 2, 4, (1, 2), 6)
    assert kind_of(model) == "my_models.towers:Towers"
    assert as_tree(config)["model"] == {
        "kind": "my_models.towers:Towers",
        "width": 3,
        "depth": 2,
        "image": {"size": 4},
        "sides": [1, 2],
    }
    assert load_config(write(tmp_path, as_yaml(config), "again.yaml")) == config
    with pytest.raises(ConfigError, match="generation needs a model of kind decoder") as caught:
        config.decoder("generation")
    assert caught.value.found == "my_models.towers:Towers"


@pytest.mark.parametrize(
    ("kind", "keys", "cause", "remedy"),
    [
        ("no_models.towers:Towers", "", "not installed, or needs another: No module named 'no_models'", "PYTHONPATH"),
        ("my_models.nowhere:Towers", "", "No module named 'my_models.nowhere'", "Install"),
        (
            "my_models.needing:Towers",
            "",
            "or needs another: No module named 'no_such_library'",
            "Install the package",
        ),
        ("my_models.broken:Towers", "", "cannot be imported: ZeroDivisionError", "import my_models.broken"),
        ("my_models.towers:Tower", "", "a class that my_models.towers does not have", "my_models.towers:Towers?"),
        ("my_models.towers:Nothing", "", "does not have", "Write @dataclass"),
        ("my_models.towers:plain", "", "must name a frozen dataclass", "frozen=True"),
        ("my_models.towers:Thawed", "", "must name a frozen dataclass", "frozen=True"),
        ("my_models.towers:Named", "", "a class that has a `kind` itself", "Rename"),
        ("my_models.towers:Unknown", "", "types are unknown: name 'Nowhere'", "Import them"),
        ("my models:Towers", "", "must be package.module:Name", "my_models.towers:Towers"),
        ("my_models.towers:Towers", "width: 1, dept: 3", "unknown key in model (kind my_mod", "Did you mean depth?"),
        ("my_models.towers:Towers", "width: 1, area: 3", "unknown key in model", "Valid keys: width, depth,"),
        ("my_models.towers:Towers", "depth: 1", "model.width is missing", "Give model.width: an integer."),
        ("my_models.towers:Towers", "width: -1", "model is refused by Towers: ValueError: width below 0", "Correct"),
        ("my_models.towers:Odd", "paths: [1]", "model.paths has a type that cannot be read from YAML", "tuple[X, ...]"),
    ],
)
def test_a_class_that_cannot_be_taken_is_refused_at_its_place(
    tmp_path: Path, path: Path, kind: str, keys: str, cause: str, remedy: str
) -> None:
    error = error_of(write(tmp_path, f"extends: base.yaml\n\nmodel:\n  {{kind: '{kind}', {keys}}}\n", "own.yaml"))
    assert error.cause.startswith(f"{tmp_path}/own.yaml:4: ")
    assert cause in error.cause
    assert remedy in error.remedy


def test_another_kind_drops_the_keys_of_the_kind_below(tmp_path: Path, path: Path) -> None:
    write(tmp_path, "extends: base.yaml\nmodel: {dim: 96}\n", "decoder.yaml")
    own = "extends: decoder.yaml\nmodel: {kind: 'my_models.towers:Towers', width: 3}\n"
    config = load_config(write(tmp_path, own, "own.yaml"))
    model: Any = config.model
    assert model.width == 3
    assert load_config(tmp_path / "own.yaml", ["model.kind=decoder"]).model == ModelConfig()
    assert error_of(tmp_path / "own.yaml", "model.width=4", "model.kind=decoder").found == "width"
    overrides = ["model.width=3", "model.kind=my_models.towers:Towers"]
    assert load_config(tmp_path / "decoder.yaml", overrides) == load_config(tmp_path / "decoder.yaml", overrides[::-1])
    assert load_config(tmp_path / "decoder.yaml", overrides) == config
    above = "extends: own.yaml\nmodel: {kind: 'my_models.towers:Towers', depth: 5}\n"
    deeper: Any = load_config(write(tmp_path, above, "deeper.yaml")).model
    assert (deeper.width, deeper.depth) == (3, 5)
    same = load_config(tmp_path / "decoder.yaml", ["model.kind=decoder"]).model
    assert same == ModelConfig(dim=96)


def test_the_schema_for_editors_has_the_kinds() -> None:
    schema = json_schema()
    for model, right in [
        ({"dim": 3}, True),
        ({"kind": "decoder", "dim": 3}, True),
        ({"kind": "decoder", "width": 3}, False),
        ({"kind": "my_models.towers:Towers", "width": 3}, True),
        ({"kind": "towers", "width": 3}, False),
        (None, True),
    ]:
        assert fits({"model": model}, schema) == right, model
    for sink, right in [
        ({"kind": "wandb", "project": "a"}, True),
        ({"project": "a"}, False),
        ({}, True),
        ({"kind": "tensorboard", "project": "a"}, False),
        ({"kind": "my_models.sinks:Sink", "project": "a"}, True),
    ]:
        assert fits({"metrics": {"sinks": [{"kind": "jsonl"}, sink]}}, schema) == right, sink
    assert NextTokenConfig() == load_section(NextTokenConfig, YamlTable(entries={}, places={}, place="f"))


def test_all_problems_are_shown_together_each_with_its_place(tmp_path: Path) -> None:
    text = """\
stor: {url: x}
data:
  sources: [{dataset: docs, weight: 0}, {split: a}]
  seed: x
  window: 0
  sequence_length: 0
model:
  num_heads: 7
  dim: 36
  num_kv_heads: 7
  dropout: 1
  norm_eps: 0
batch: 3
objective: {kind: nxt}
train: {zero_stage: 5, run: a/b, tokens: 2, steps: 0}
"""
    path = write(tmp_path, text)
    error = error_of(path)
    lines = error.cause.splitlines()
    assert lines[0] == f"the config has {len(lines) - 1} problems:"
    wanted = [
        "1: unknown key: found 'stor'. Did you mean store?",
        "3: data.sources.0.weight must be above 0: found 0.0. Remove the source to leave it out.",
        "3: data.sources.1.dataset is missing. Give data.sources.1.dataset: text.",
        "4: data.seed must be an integer, not this: found 'x'. Give an integer.",
        "13: batch must be a mapping with global_batch, micro_batch, accumulation, forward_tokens, uneven, not this",
        "12: model.norm_eps must be above 0: found 0.0.",
        "11: model.dropout must lie in [0, 1): found 1.0. Give 0 to drop nothing.",
        "14: objective.kind must be next_token or dpo or ipo or kto or orpo or simpo or reward or package.module:Name, "
        "not this: found 'nxt'. Take next_token",
        "15: train.zero_stage must be one of 0, 1, 2, 3, not this: found '5'. Take one of 0, 1, 2, 3.",
        "15: train.run must be a plain name: found 'a/b'. Letters",
        "15: train.steps must be at least 1: found 0. Give 1 or more.",
    ]
    for part in wanted:
        assert any(f"{path}:{part}" in line for line in lines), part
    assert not any("num_kv_heads" in line for line in lines), "12 heads, the default, do not stand in the file"
    assert len(lines) - 1 == len(wanted)


def test_a_section_tells_all_values_that_it_refuses() -> None:
    tree = parse("sequence_length: 0\nwindow: 0\ncache_bytes: 1\nsources: [{dataset: a}]", "f")
    assert isinstance(tree, YamlTable)
    with pytest.raises(ConfigError) as caught:
        load_section(DataConfig, tree)
    assert [line.split(" must")[0].strip() for line in caught.value.cause.splitlines()[1:]] == [
        "1. f:1: sequence_length",
        "2. f:2: window",
        "3. f:3: cache_bytes",
    ]
    with pytest.raises(InvalidField):
        DataConfig(sources=(), window=0)
