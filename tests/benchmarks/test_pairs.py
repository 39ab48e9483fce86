"""Pairs of before and after: the verdict, and a start without an earlier checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pairs import summary

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("after", "slower"),
    [([1.0, 1.01, 0.99], False), ([1.06, 1.05, 1.07], True), ([0.9, 0.91, 0.89], False), ([0.9, 1.2, 1.05], False)],
)
def test_only_an_interval_below_the_bound_as_a_whole_is_slower(after: list[float], slower: bool) -> None:
    found = summary([(1.0, value) for value in after * 8])
    assert found["interval"][0] <= found["ratio"] <= found["interval"][1]
    assert found["slower"] is slower


@pytest.mark.parametrize("options", [[], ["--before", "nowhere"], ["--before", str(ROOT), "--pairs", "0"]])
def test_a_missing_checkout_and_no_pairs_are_refused(options: list[str], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "benchmarks.pairs", "loader", *options]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found" in done.stderr
    assert "Traceback" not in done.stderr
