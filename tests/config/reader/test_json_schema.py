"""The JSON Schema for editors accepts and refuses the same configs as `load_config`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import Config, as_tree, load_config
from fmscale.config.reader.json_schema import json_schema
from fmscale.config.reader.load import shipped_configs
from fmscale.config.reader.refusals import dotted_names
from fmscale.errors import ConfigError

SCHEMA = json_schema()
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


class Loader(yaml.SafeLoader):
    """YAML 1.2 as editors read it: 1e-4 is a number."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)$"), list("-+0123456789")
)


def is_of(value: Any, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return name == ("null" if value is None else "boolean")
    return name != "null" and isinstance(value, TYPES[name])


def fits(value: Any, schema: Any) -> bool:
    """Validate by the keywords that the schema uses."""
    if isinstance(schema, bool):
        return schema
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(is_of(value, name) for name in names):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return False
    if isinstance(value, dict):
        rest = schema.get("additionalProperties", True)
        inner = (fits(item, schema.get("properties", {}).get(key, rest)) for key, item in value.items())
        return set(schema.get("required", ())) <= set(value) and all(inner)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        places = [*first, *[schema.get("items", True)] * (len(value) - len(first))]
        return len(value) >= schema.get("minItems", 0) and all(map(fits, value, places))
    return True


RUNS = [name for name in shipped_configs() if not name.startswith(("program/", "task/"))]
"""Shipped files that are, or extend, configs of a run."""


@pytest.mark.parametrize("name", RUNS)
def test_shipped_configs_fit(name: str) -> None:
    assert fits(yaml.load(shipped_configs()[name].read_text(), Loader), SCHEMA)
    if name.startswith("run/"):
        assert fits(json.loads(json.dumps(as_tree(load_config(name)))), SCHEMA)


def test_it_has_every_key_with_its_meaning_and_default() -> None:
    def keys(schema: Any, path: str) -> dict[str, Any]:
        inner: Any = next((one for one in [schema, *schema.get("anyOf", ())] if "properties" in one), {})
        found = {f"{path}{key}": one for key, one in inner.get("properties", {}).items()}
        return found | {name: one for key, below in found.items() for name, one in keys(below, f"{key}.").items()}

    found = keys(SCHEMA, "")
    assert set(dotted_names(Config)) <= set(found)
    assert all(one["description"] for one in found.values())
    assert found["train.zero_stage"]["enum"] == [0, 1, 2, 3]
    assert found["train.zero_stage"]["default"] == 2
    assert found["optimizer.betas"]["default"] == [0.9, 0.95]
    assert found["data.sources"]["items"]["required"] == ["dataset"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("train:", True),
        ("train: {steps: 1_000, run: 8, seconds: null, tokens: 1.5e9}", False),
        ("train: {steps: 1_000, run: 8, seconds: null}", True),
        ("train: {stpes: 1}", False),
        ("train: {zero_stage: 4}", False),
        ("train: {compile: 1}", False),
        ("train: {log_every: null}", False),
        ("optimizer: {betas: [0.9, 0.99], lr: 1e-4}", True),
        ("optimizer: {betas: [0.9]}", False),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}", False),
        ("data: {sources: [{dataset: docs}, {split: train}]}", False),
        ("data: {sources: [{dataset: docs, commits: [0, 1], masks: []}]}", True),
        ("data: {sources: {dataset: docs}}", False),
        ("launch: {environment: {NCCL_DEBUG: INFO}, arguments: [--exclusive]}", True),
        ("model: {rope_scaling: {factor: 4}}", True),
        ("model: {rope_scaling: null, dim: wide}", False),
        ("places: {}", False),
    ],
)
def test_it_says_what_reading_says(text: str, right: bool, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {sources: [{dataset: docs}]}")
    path = tmp_path / "run.yaml"
    path.write_text(f"extends: base.yaml\n{text}\n")
    if right:
        load_config(path)
    else:
        with pytest.raises(ConfigError):
            load_config(path)
    assert fits(yaml.load(path.read_text(), Loader), SCHEMA) == right


def test_the_command_line_writes_it() -> None:
    result = CliRunner().invoke(build_app(), ["config", "schema"])
    assert json.loads(result.stdout) == json.loads(json.dumps(SCHEMA))
