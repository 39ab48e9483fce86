"""`fmscale ingest`: its output for users and scripts, and unusable input."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.open import open_store
from tests.data.ingest.corpora import documents, mixed, put


def run(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["ingest", *map(str, words)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def place(tmp_path: Path) -> list[str | Path]:
    return ["--store", tmp_path / "store", "--dataset", "docs"]


def test_a_folder_of_text_becomes_a_dataset_with_one_command(tmp_path: Path, place: list[str | Path]) -> None:
    corpus = mixed(tmp_path / "in")
    status, out, err = run(corpus, *place, "--tokenizer", "bpe:300", "--heldout", "0.2")
    assert (status, err) == (0, "")
    said = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(("split", "skipped")))
    assert (said["dataset"].strip(), said["documents"].strip()) == ("docs", "141")
    assert "skipped, undecodable  1: code/latin.txt: byte 3" in out
    assert "split heldout" in out
    status, out, _ = run(corpus, *place, "--tokenizer", "bpe:300", "--heldout", "0.2", "--json")
    again = json.loads(out)
    assert (status, again["new"], again["documents"]) == (0, False, 141)
    assert again["skipped"]["vcs"] == {"count": 1, "first": ["code/.git"]}


def test_what_was_guessed_is_said(tmp_path: Path, place: list[str | Path]) -> None:
    put(tmp_path / "in/package.json", '{\n  "name": "x"\n}\n')
    put(tmp_path / "in/data.json", '{"text": "first"}\n{"text": "second"}\n')
    status, out, err = run(tmp_path / "in", *place, "--tokenizer", "bytes")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines() if line.startswith("guessed")] == [
        ["guessed,", "jsonl", "1:", "data.json"],
        ["guessed,", "text", "1:", "package.json"],
    ]


def test_records_are_shown_as_records(tmp_path: Path, place: list[str | Path]) -> None:
    put(tmp_path / "in/a.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(30)))
    put(tmp_path / "in/cat.jpg", b"jpg")
    words = (tmp_path / "in", *place, "--as", "records", "--heldout", "0.3")
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    said = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(("split", "work")))
    assert said["records"].strip() == "31"
    assert {"records/s", "bytes"} <= said.keys()
    assert not {"documents", "tokens", "tokenizer", "tokens/s"} & said.keys()
    assert "split heldout" in out
    _, out, _ = run(*words, "--json")
    again = json.loads(out)
    assert (again["new"], again["kind"], again["documents"], again["tokenizer"]) == (False, "records", 31, None)
    for option in (["--tokenizer", "bytes"], ["--field", "n"], ["--no-eos"], ["--bos"]):
        status, _, err = run(*words, *option)
        assert status == 2
        assert "Records keep all their columns and are not tokenized" in err
        assert "or use --as text" in err


def test_a_held_out_share_that_came_to_no_document_is_said(tmp_path: Path, place: list[str | Path]) -> None:
    for i in range(3):
        put(tmp_path / f"in/{i}.txt", "text")
    words = (tmp_path / "in", *place, "--tokenizer", "bytes", "--heldout")
    status, out, err = run(*words, "1e-9", "--json")
    assert (status, json.loads(out)["documents"]) == (0, 3)
    assert "none of 3 documents was held out by --heldout 1e-09" in err
    assert run(*words, "1e-9")[2] == err, "an ingest that finds all done says it too"
    assert "another share of its documents, 1e-09" in run(*words, "0")[2]


def test_a_new_dataset_gets_a_tokenizer_of_8192_and_an_eos(tmp_path: Path, place: list[str | Path]) -> None:
    put(tmp_path / "in/a.txt", "some words " * 20)
    assert run(tmp_path / "in", *place)[0] == 0
    store = open_store(str(tmp_path / "store"))
    _, out, _ = run(tmp_path / "in", *place, "--json")
    assert json.loads(out)["tokenizer"]
    tokenizer = from_json(load_tokenizer(store, json.loads(out)["tokenizer"]))
    ((_, _, _, _, tokens),) = documents(store, "docs", "train")
    assert tokens[-1] == tokenizer.eos_id
    assert tokenizer.decode(tokens[:-1]) == "some words " * 20


@pytest.mark.parametrize(
    ("words", "cause", "found", "remedy"),
    [
        (["missing"], "no such file or folder", "missing", "Check the path"),
        (["in", "--tokenizer", "gpt2"], "nothing is downloaded", "gpt2", "tokenizer.json"),
        (["in", "--tokenizer", "bpe:3"], "vocabulary size", "bpe:3", "bpe:8192"),
        (["in", "--format", "csv"], "no such input format", "csv", "jsonl"),
        (["in", "--strict"], "not UTF-8", "latin.txt: byte 3", "without --strict"),
        (["in", "--heldout", "2"], "held-out share", "2.0", ""),
        (["in", "--workers", "0"], "many writers", "0", "1 or more"),
        (["empty"], "hold no document", "1 empty (a.txt)", "Name files"),
        (["in", "--dataset", "a/b"], "cannot have this name", "a/b", "letters"),
        (["in", "--store", "s4://bucket"], "", "s4", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_say_cause_value_and_remedy(
    tmp_path: Path,
    place: list[str | Path],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    cause: str,
    found: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in/latin.txt", b"caf\xe9")
    put(tmp_path / "in/good.txt", "text")
    put(tmp_path / "empty/a.txt", "")
    status, out, err = run(*[word for word in place if "--tokenizer" not in words or word], *words)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert "remedy: " in err
    for part in (cause, found, remedy):
        assert part in err


def test_a_bar_moves_on_a_terminal_and_results_stay_on_standard_output(tmp_path: Path, place: list[str | Path]) -> None:
    put(tmp_path / "in/a.txt", "text " * 1000)
    reader, terminal = pty.openpty()
    line = [
        Path(sys.executable).with_name("fmscale"),
        "ingest",
        tmp_path / "in",
        *place,
        "--tokenizer",
        "bytes",
    ]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    watchdog = threading.Timer(240.0, process.kill)
    watchdog.start()
    # Read while it runs: a bar that nobody reads blocks once the terminal's buffer is full.
    shown = b""
    while True:
        try:
            shown += (part := os.read(reader, 65536))
        except OSError:  # the terminal is gone
            break
        if not part:
            break
    os.close(reader)
    out = process.communicate()[0]
    watchdog.cancel()
    assert process.returncode == 0
    assert b"committing" in shown
    assert b"5.0/5.0 KiB" in shown or b"4.9/4.9 KiB" in shown
    assert out.startswith("dataset")
