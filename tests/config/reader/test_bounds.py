"""A config takes bounded time and memory to read, and a number that cannot be used is refused with its key."""

from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase

import pytest

from fmscale.config import load_config
from fmscale.errors import ConfigError

BASE = "data: {sources: [{dataset: d}]}\n"
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(ascii_lowercase[:9])
)
"""Nine lines that stand for 10^9 values."""


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", overrides)
    assert caught.value.remedy
    return str(caught.value)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    assert "run.yaml:1: more than 100_000 values, with aliases written out" in refused(tmp_path, ALIASES + BASE)


@pytest.mark.parametrize(
    "text",
    ["data: " + "[" * 5000, "data: " + "[" * 100 + "]" * 100, "".join(" " * i + "a:\n" for i in range(2000))],
)
def test_deep_values_are_refused(tmp_path: Path, text: str) -> None:
    assert "values lie in one another too deeply. Use 64 levels or less." in refused(tmp_path, text)


def test_deep_overrides_are_refused(tmp_path: Path) -> None:
    assert "must be key=value" in refused(tmp_path, BASE, f"{'a.' * 5000}b=1")
    assert "model must be a mapping" in refused(tmp_path, BASE, "model=" + "{a: " * 300 + "}" * 300)
    assert "model must be a mapping" in refused(tmp_path, BASE, "model=" + "[" * 5000)


def test_extends_that_multiply_or_never_end_are_refused(tmp_path: Path) -> None:
    for number in range(120):
        other = f"{number + 1}.yaml"
        others = f"[{other}, {other}]" if number < 40 else other
        (tmp_path / f"{number}.yaml").write_text(f"extends: {others}\n")
    (tmp_path / "120.yaml").write_text(BASE)
    for first in (0, 10, 20):
        assert "extends leads to more than 100 files" in refused(tmp_path, f"extends: {first}.yaml\n")
    (tmp_path / "run.yaml").write_text("extends: [41.yaml, 120.yaml]\n")
    assert load_config(tmp_path / "run.yaml").data.sources[0].dataset == "d", "a long chain is no bomb"


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        ("train.seed=100000000000000000000", ("must be an integer", "64 bits")),
        ("train.seed=1e20", ("must be an integer", "64 bits")),
        ("data.seed=" + "1" * 5000, ("must be an integer",)),
        ("data.sources.0.seed=1e20", ("must be an integer or null", "64 bits")),
        ("data.window=9223372036854775807", ("at most 4_294_967_296",)),
        ("train.threads=100000000", ("at most 1_024",)),
        ("checkpoint.seal_seconds=1e300", ("at most 1_000_000_000.0",)),
        ("model.window=None", ("must be an integer or null", "Give an integer or null.")),
        ("model.softcap=None", ("must be a number or null",)),
        ("train.compile=None", ("must be true or false or null",)),
        ("train.reduce_precision=None", ("one of bf16, fp32 or null",)),
        ("data.cache_dir=[a]", ("must be text or null, not a list",)),
        ("checkpoint.every=5.0", ("must be an integer or null", "Write 5.")),
        ("metrics={sinks: [{kind: jsonl}, {kind: mlflow, tracking_uri: 'http://[::1'}]}", ("tracking_uri is no URL",)),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(tmp_path: Path, override: str, texts: tuple[str, ...]) -> None:
    shown = refused(tmp_path, BASE, override)
    assert override.partition("=")[0] in shown
    assert all(text in shown for text in texts), shown


def test_seeds_of_64_bits_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(BASE)
    config = load_config(tmp_path / "run.yaml", ("data.seed=18446744073709551615", "train.seed=-9223372036854775808"))
    assert (config.data.seed, config.train.seed) == (2**64 - 1, -(2**63))
