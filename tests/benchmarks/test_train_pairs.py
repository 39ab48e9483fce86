"""The pairs of `fmscale bench train`, at their smallest."""

import sys
from pathlib import Path

import pytest

from benchmarks.harness import run_json
from benchmarks.train import foreign_claims, pair_claim
from benchmarks.train_foreign import loss_at


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
    claims = list(foreign_claims(found["foreign"], found["losses"]))
    assert [claim.id for claim in claims] == ["T4.transformers", "T4.nanogpt"]
    assert all(claim.ratio and claim.ratio > 0 for claim in claims)
    for pairs in ("overhead", "feed"):
        assert pair_claim("T", "", "other", found[pairs], 0.0).ok


def test_the_loss_at_equal_cpu_seconds_is_that_of_the_last_whole_segment() -> None:
    losses = [4.0, 3.0, 2.0, 1.0]
    assert loss_at(5.0, [2.0, 3.0], losses) == 1.5
    assert loss_at(4.9, [2.0, 3.0], losses) == 3.5
    with pytest.raises(ValueError, match="no segment ended within"):
        loss_at(1.9, [2.0, 3.0], losses)
