"""The pairs of `fmscale bench train`, at their smallest."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness import run_json
from benchmarks.train import foreign_claims, pair_claim
from benchmarks.train_pairs import level


@pytest.mark.slow
def test_every_side_trains_on_the_same_rows(tmp_path: Path) -> None:
    found = run_json([sys.executable, "-m", "benchmarks.train_pairs", str(tmp_path), "2", "1"], timeout=300)
    assert {name: len(losses) for name, losses in found["losses"].items()} == {
        "ours": 2,
        "transformers": 2,
        "nanogpt": 2,
    }
    ours, theirs = (found["losses"][name] for name in ("ours", "transformers"))
    # The same first weights and rows; ours attends within documents alone.
    assert theirs == pytest.approx(ours, rel=2e-3)
    # Rows that none has seen, after two steps or a few more.
    assert list(found["unseen"].values()) == pytest.approx([found["losses"]["ours"][-1]] * 3, rel=0.05)
    claims = list(foreign_claims(found["foreign"], found["unseen"], found["seconds"], 1))
    assert [claim.id for claim in claims] == ["T4.transformers", "T4.nanogpt"]
    assert all(claim.ratio and claim.ratio > 0 for claim in claims)
    for pairs in ("overhead", "feed"):
        assert pair_claim("T", "", "other", found[pairs], 0.0).ok


def test_each_side_goes_on_to_the_cpu_seconds_of_the_slowest() -> None:
    took: list[str] = []

    def work(name: str, steps: int) -> None:
        took.append(name)
        began = time.process_time()
        while time.process_time() < began + 0.05:
            pass

    assert level({name: partial(work, name) for name in "ab"}, [{"a": (1.0, 2.0), "b": (1.0, 2.075)}]) == 2.075
    assert took == ["a", "a"]
