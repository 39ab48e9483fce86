"""`fmscale bench life` covers its claims, reads the tour's report, and is refused without the peers."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import life
from benchmarks.harness import ROOT
from fmscale.errors import ConfigError

IDS = {f"F{number}" for number in (*range(1, 12), 15, 16, 17, 19)}


def test_the_parts_cover_the_claims_once_and_their_modules_make_them() -> None:
    ids = [id for part in life.PARTS for id in part.ids]
    assert sorted(ids) == sorted(IDS)
    for part in life.PARTS:
        text = (ROOT / "benchmarks" / f"{part.module}.py").read_text()
        assert {id for id in part.ids if not re.search(rf'["\']{id}[."\']', text)} == set()
        if part.module != "life":
            assert "def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:" in text


def test_parts_are_chosen_by_the_ids_of_their_claims() -> None:
    assert life.choose([]) == list(life.PARTS)
    assert [part.module for part in life.choose(["F1.bfd", "F16"])] == ["life_sft", "life_evaluate"]
    with pytest.raises(ConfigError, match="no claim") as caught:
        life.choose(["F1", "F12"])
    assert "F19" in caught.value.remedy


def test_without_the_peers_it_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        life.run(quick=True, peers=tmp_path / "python")
    assert "make bench-life-env" in caught.value.remedy


def test_a_part_that_breaks_leaves_its_claims_unmet_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.life_sft.PEER", str(tmp_path / "nothing.py"))
    claims = life.measured(life.PARTS[0], quick=True, peers=Path("/bin/false"))
    assert [(claim["id"], claim["ours"], claim["ok"]) for claim in claims] == [
        (id, None, False) for id in ("F1", "F2", "F19")
    ]
    assert "exit 1" in claims[0]["reasons"]["fmscale"]


@pytest.mark.parametrize(("high", "ok"), [(0.15, True), (0.21, False)])
def test_steps_are_judged_by_the_ends_of_the_intervals(high: float, ok: bool, tmp_path: Path) -> None:
    cells = {
        "direct": {"value": 0.1, "n": 400, "low": 0.08, "high": high},
        "steps": {"value": 1.0, "n": 400, "low": 0.99, "high": 1.0},
    }
    (tmp_path / "report.json").write_text(json.dumps({"accuracy": {"sft": cells}}))
    claim = life.steps_claim(tmp_path / "report.json")
    assert (claim.ours, claim.peers, claim.ok) == (1.0, {"asked directly": 0.1}, ok)
    missing = life.steps_claim(ROOT / "runs" / "nothing" / "report.json")
    assert (missing.ours, missing.ok) == (None, False)
    assert "fmscale quickstart life" in missing.reasons["fmscale"]
