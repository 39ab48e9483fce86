"""The tour through the life of a tiny model: its problems, and all its acts on little data."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fmscale.quickstart.life.acts import RUNS, WAYS, run_life, table_rows
from fmscale.quickstart.life.problems import WORDS, chats, pairs, problems, texts, tokenizer_json


def test_problems_are_right_and_made_of_words_of_the_vocabulary() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json())
    found = list(problems(3, 300))
    assert found == list(problems(3, 300))
    for problem in found:
        total = problem.begin
        for verb, number, after in problem.events:
            total += number if verb in ("bought", "found", "got", "picked") else -number
            assert total == after >= 0
        assert problem.answer == total
        assert set(f"{problem.question} {problem.worked}".split()) <= set(WORDS)
    for row in (*texts(0, 20), *chats(1, 20), *pairs(2, 20)):
        for text in re.findall(r'"(?:text|content)": "([^"]*)"', json.dumps(row)):
            ids = tokenizer.encode(text).ids
            assert 0 not in ids, f"an unknown word in {text}"


@pytest.mark.slow
def test_all_acts_run_and_a_second_run_finds_them_done(tmp_path: Path) -> None:
    told: list[str] = []
    keys = ("train.steps=4", "batch.global_batch=12", "checkpoint.every=2")
    report: dict[str, Any] = run_life(tmp_path / "life", told.append, tested=8, keys=keys)
    assert [name for name in RUNS if f"train {name}" in told] == list(RUNS)
    assert set(report["accuracy"]) == {"sft", "lora", "dpo"}
    for ways in report["accuracy"].values():
        assert set(ways) == set(WAYS)
        assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 and one["n"] == 8 for one in ways.values())
    small, whole = report["runs"]["lora"], report["runs"]["sft"]
    assert small["parameters"] < whole["parameters"] / 2
    assert small["bytes"] < whole["bytes"] / 2
    page = (tmp_path / "life" / "report.html").read_text()
    assert "side by side" in page
    assert "http://" not in page
    assert len(table_rows(report)) == 3
    before = {run: report["runs"][run] for run in RUNS}
    again = run_life(tmp_path / "life", told.append, tested=8, keys=keys)
    assert again["runs"] == before, "nothing was trained twice"
    assert again["accuracy"] == report["accuracy"]
