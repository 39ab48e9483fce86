"""`fmscale generate` and `fmscale evaluate` as a user meets them."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.infer import Sampling, evaluate, generate
from fmscale.infer.compressors import gzip_bytes
from fmscale.infer.heldout import stored_documents
from fmscale.infer.load import TrainedModel, open_trained
from tests.infer.trained_run import save_run, store_texts


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = store_texts(tmp_path_factory.mktemp("cli"))
    save_run(url, "run", (5,))
    return f"{url}#run"


@pytest.fixture(scope="module")
def trained(address: str) -> TrainedModel:
    return open_trained(address)


def run(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), list(words), input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def said(trained: TrainedModel, prompts: list[str], count: int, sampling: Sampling, samples: int = 1) -> list[str]:
    ids = [trained.encode(prompt) for prompt in prompts]
    found = generate(trained.model, ids, max_tokens=count, sampling=sampling, eos=trained.eos, samples=samples)
    return [
        trained.tokenizer.decode([*ids[n // samples], *one.tokens])[len(prompts[n // samples]) :]
        for n, one in enumerate(found)
    ]


def test_a_completion_is_printed_behind_its_prompt(address: str, trained: TrainedModel) -> None:
    status, out, err = run("generate", address, "the ", "--max-tokens", "20", "--temperature", "0")
    assert status == 0
    assert out == "the " + said(trained, ["the "], 20, Sampling())[0] + "\n"
    assert "run run, step 5: " in err


def test_several_prompts_are_printed_in_order(address: str, trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("naïve")
    words = (
        "--file",
        str(tmp_path / "prompt.txt"),
        "--file",
        "-",
        "--max-tokens",
        "12",
        "--seed",
        "3",
        "--top-k",
        "40",
    )
    status, out, _ = run("generate", address, "the ", *words, "--samples", "2", stdin="fox")
    prompts = ["the ", "the ", "naïve", "naïve", "fox", "fox"]
    wanted = said(trained, prompts[::2], 12, Sampling(temperature=0.8, top_k=40, seed=3), samples=2)
    assert status == 0
    assert out == "".join(
        f"--- {i} of 6 ---\n{prompt}{text}\n" for i, (prompt, text) in enumerate(zip(prompts, wanted, strict=True), 1)
    )
    assert wanted[0] != wanted[1]


def test_completions_as_json(address: str, trained: TrainedModel) -> None:
    status, out, _ = run("generate", address, "the ", "a", "--max-tokens", "8", "--temperature", "0", "--json")
    found = json.loads(out)
    assert (status, found["run"], found["step"]) == (0, "run", 5)
    wanted = said(trained, ["the ", "a"], 8, Sampling())
    assert [one["completion"] for one in found["completions"]] == wanted
    assert {one["stop"] for one in found["completions"]} <= {"eos", "length"}


def test_a_stop_text_and_probabilities_as_json(address: str, trained: TrainedModel) -> None:
    words = ["generate", address, "the ", "--max-tokens", "16", "--temperature", "0", "--slots", "2"]
    (free,) = said(trained, ["the "], 16, Sampling())
    stop = free[5:8]
    status, out, _ = run(*words, "--json", "--stop", stop, "--logprobs", "--min-p", "0.1", "--repetition", "1.0")
    (one,) = json.loads(out)["completions"]
    assert (status, one["completion"], one["stop"]) == (0, free[: free.index(stop)], "stop")
    assert len(one["token_ids"]) == len(one["logprobs"]) == len(one["drawn_logprobs"]) == one["tokens"]
    assert max(one["logprobs"]) < 0
    assert run(*words, "--stop", stop)[1] == f"the {free[: free.index(stop)]}\n"


def test_an_evaluation(address: str, trained: TrainedModel) -> None:
    status, out, _ = run("evaluate", address, "--json", "--per-document", "--overlap", "16")
    found = json.loads(out)
    documents = list(stored_documents(trained.backend, "docs", "heldout", trained.tokenizer, bos=None, eos=trained.eos))
    total = evaluate(trained.model, documents, window=64, overlap=16).total
    size = sum(len(one.text) for one in documents)
    assert status == 0
    assert (found["documents"], found["bytes"], found["tokens"]) == (
        len(documents),
        size,
        size + len(documents),
    )
    assert found["bits_per_byte"] == pytest.approx(total.bits_per_byte)
    assert found["gzip_bits_per_byte"] == pytest.approx(8 * sum(gzip_bytes(one.text) for one in documents) / size)
    assert found["perplexity"] == pytest.approx(total.perplexity)
    assert [one["document"] for one in found["per_document"]] == [one.name for one in documents]


def test_an_evaluation_of_files_as_a_table(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox")
    status, out, _ = run("evaluate", address, "--file", str(tmp_path / "a.txt"), "--no-others", "--per-document")
    assert status == 0
    summary, listing = re.split(r"\n *documents *\n", out)
    lines = dict(line.split() for line in summary.splitlines() if line.strip())
    assert (lines["documents"], lines["bytes"], lines["tokens"]) == ("1", "19", "20")
    header, row = listing.splitlines()
    assert header.split() == ["document", "bytes", "tokens", "bits_per_byte"]
    assert row.split()[:3] == [str(tmp_path / "a.txt"), "19", "20"]
    assert "gzip" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "{store}#rum", "x"], "no run of this name\n  found:  rum\n  remedy: Did you mean run?"),
        (["generate", "{store}", "x"], "not the address of a checkpoint"),
        (["generate", "{store}#run"], "There is no prompt"),
        (["generate", "{store}#run", "x" * 90, "--max-tokens", "10"], "found:  90 + 10 > 96"),
        (["generate", "{store}#run", "x", "--logprobs"], "Add --json"),
        (["generate", "{store}#run", "x", "--top-p", "2"], "top_p cannot be this"),
        (["generate", "{store}#run", "--file", "/nowhere"], "cannot be read as UTF-8 text"),
        (["evaluate", "{store}#run", "--split", "test"], "no documents of this split"),
        (["evaluate", "{store}#run", "--dataset", "dogs"], "Did you mean docs?"),
        (["evaluate", "{store}#run", "--window", "97"], "Take 1 to 96 tokens"),
    ],
)
def test_mistakes_are_told_with_their_remedy(address: str, words: list[str], message: str) -> None:
    store = address.removesuffix("#run")
    status, out, err = run(*(word.replace("{store}", store) for word in words))
    assert (status, out) == (2, "")
    assert message in err
