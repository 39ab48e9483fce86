"""`fmscale top`: ranks with their steps and places, and marks at ranks that lag."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.runtime.watched import write_watched


def shown(*words: str) -> str:
    result = CliRunner().invoke(build_app(), ["top", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ranks_of_a_run(tmp_path: Path) -> None:
    states = [
        {
            "rank": rank,
            "host": "node-1",
            "step": 9 - rank,
            "phase": "train",
            "seconds": 2.0,
            "place": "train/loop.py:80",
            "silent": 40.0 if rank == 2 else 0.0,
        }
        for rank in range(3)
    ]
    write_watched(tmp_path, states)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 9, "tokens_per_second": 1234.0}) + "\n")
    lines = shown(str(tmp_path), "--once").splitlines()
    assert re.search(r"1,234 tokens/s, told \d+ s ago$", lines[0])
    assert lines[1].split() == ["rank", "host", "step", "phase", "seconds", "place", "note"]
    rows = [line.split() for line in lines[2:]]
    assert all(int(row.pop(4)) >= 2 for row in rows)
    assert rows == [
        ["0", "node-1", "9", "train", "train/loop.py:80"],
        ["1", "node-1", "8", "train", "train/loop.py:80", "lags"],
        ["2", "node-1", "7", "train", "train/loop.py:80", "silent", "40", "s"],
    ]
    rows = json.loads(shown(str(tmp_path), "--json"))
    assert [(row["rank"], row["note"]) for row in rows] == [(0, ""), (1, "lags"), (2, "silent 40 s")]


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["top", str(tmp_path), "--once"])
    assert result.exit_code == 2
