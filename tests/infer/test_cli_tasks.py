"""`fmscale evaluate --task`, `fmscale generate --program` and `fmscale dataset decontaminate` as a user meets them."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.infer.load import open_trained
from fmscale.infer.tasks import evaluate_task, load_task
from fmscale.infer.tasks.metrics import wilson
from tests.infer.task_run import task_run, write_task


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return task_run(tmp_path_factory.mktemp("cli"))


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_runs_stand_side_by_side_with_intervals(address: str, tmp_path: Path) -> None:
    other, to = address.replace("#run", "#other"), tmp_path / "results.jsonl"
    status, out, err = run("evaluate", address, other, "--task", "facts", "--task", "prose", "--to", str(to))
    assert status == 0, err
    wanted = [evaluate_task(open_trained(where), load_task("facts")) for where in (address, other)]
    header, *rows = out.splitlines()
    assert header.split() == ["task", "metric", "n", "run", "other"]
    assert [row.split()[1] for row in rows[:3]] == ["acc", "acc_norm", "acc_bytes"]
    hits = [result.metrics[0].hits or 0 for result in wanted]
    low, high = wilson(hits[0], 8)
    assert re.split(r"  +", rows[0].strip())[3:6] == [f"{hits[0] / 8:.4f}", f"{hits[0]}/8", f"[{low:.3f}, {high:.3f}]"]
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert [line["documents"] for line in lines if "metrics" in line] == [8, 3, 8, 3]
    assert len(lines) == 4 + 2 * 11
    assert lines[1]["nats"] == wanted[0].documents[0]["nats"]
    assert f"weights {wanted[0].report['weights'][:16]}" in err


@pytest.mark.slow
def test_programs_ask_a_task_side_by_side(address: str) -> None:
    words = ("--task", "arithmetic", "--program", "oranges", "--program", "oranges_steps", "--limit", "2", "--json")
    status, out, _ = run("evaluate", address, *words)
    found = json.loads(out)
    assert status == 0
    assert [(one["asked_by"], one["documents"]) for one in found] == [("oranges", 2), ("oranges_steps", 2)]
    digests = [{key: one[key] for key in ("weights", "task_digest", "prompts", "program")} for one in found]
    assert digests[0]["weights"] == digests[1]["weights"]
    assert digests[0]["program"] != digests[1]["program"]
    assert digests[0]["prompts"] != digests[1]["prompts"]
    assert {metric["name"] for metric in found[0]["metrics"]} == {"exact_match", "no_answer"}


def test_a_program_prints_its_prompt_replies_and_votes(address: str) -> None:
    status, out, _ = run("generate", address, "--program", "french", "--set", "word=bread")
    assert status == 0
    assert out.startswith("cheese → fromage\nwater → eau\nthank you → merci\nbread →\n--- reply 1 of 1, answer ")
    assert re.search(r"^votes ", out, re.M)
    status, out, _ = run("generate", address, "--program", "french", "--json")
    found = json.loads(out)
    assert (found["program"], found["prompt"][-7:]) == ("french", "hello →")
    assert len(found["replies"]) == len(found["parsed"]) == 1


def test_a_dataset_is_searched_for_a_task(address: str, tmp_path: Path) -> None:
    text = "Document 7: the quick brown fox, naïve. the quick brown fox, naïve. the quick brown fox, naïve."
    task = write_task(tmp_path, "t", f"kind: rolling\ntext: '{{{{ t }}}}'\ndocuments: [{{t: '{text}'}}]\n")
    store = address.removesuffix("#run")
    status, out, err = run("dataset", "decontaminate", f"{store}/docs", "--task", task, "--mask", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["found"], found["task_documents"]) == (1, 1)
    assert found["found_in"] == len({one["id"] for one in found["found_documents"]})
    assert len(found["mask"]) == 32
    status, out, _ = run("dataset", "decontaminate", f"{store}/docs", "--task", "prose", "--mask")
    assert status == 0
    assert re.search(r"^mask +-", out, re.M)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "{run}", "--task", "fact"], "Did you mean"),
        (["evaluate", "{run}", "{run}"], "Several runs, --program and --to belong to tasks"),
        (["evaluate", "{run}", "--program", "french"], "belong to tasks"),
        (["evaluate", "{run}", "--task", "facts", "--program", "french"], "asks the questions of generate tasks"),
        (["evaluate", "{run}", "--task", "prose", "--to", "/nowhere/x"], "The results cannot be written"),
        (["evaluate", "{run}", "--task", "facts", "--chat"], "has no chat template"),
        (["generate", "{run}", "--program", "french", "hello"], "A program makes the prompt itself"),
        (["generate", "{run}", "--program", "germn"], "no such config file"),
        (["generate", "{run}", "--program", "french", "--set", "word"], "KEY=VALUE"),
        (["dataset", "decontaminate", "{store}/docs", "--task", "prose", "--ngram", "2"], "too short to tell a copy"),
    ],
)
def test_mistakes_are_told_with_their_remedy(address: str, words: list[str], message: str) -> None:
    store = address.removesuffix("#run")
    status, out, err = run(*(word.replace("{run}", address).replace("{store}", store) for word in words))
    assert (status, out) == (2, "")
    assert message in err
    assert "remedy:" in err
