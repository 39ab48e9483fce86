"""`fmscale ingest --as chat` and `fmscale dataset render`: counts, what is shown with and without colour, refusals."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.templates import load_template
from fmscale.store.open import open_store
from tests.helpers.chats import chat, golden, template_of, tokenizer_json, write_lines
from tests.helpers.ranks import run_ranks
from tests.train.runs import train_here

FAMILY = "lfm2_v2"
BASE = """
store: {{url: {folder}/s}}
data: {{sequence_length: 16, memory_bytes: 8_388_608, sources: [{{dataset: prose}}]}}
model: {{num_layers: 1, dim: 16, num_heads: 2, num_kv_heads: 1, max_seq_len: 64}}
batch: {{global_batch: 1, micro_batch: 1}}
train: {{run: base, folder: {folder}/runs, steps: 1, precision: fp32, device: cpu, zero_stage: 0}}
"""


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), list(words))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run `base` that knows no template, a template in a file, and messages."""
    made = tmp_path_factory.mktemp("render")
    (made / "tokenizer.json").write_bytes(tokenizer_json(FAMILY))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"}
    (made / "tokenizer_config.json").write_text(json.dumps(names))
    (made / "prose.txt").write_text("the capital of France is Paris. " * 20)
    (made / "chat.jinja").write_text(golden()["families"][FAMILY]["template"])
    write_lines(
        made / "chats.jsonl",
        [
            {"messages": chat("hello\n\u202ethere", "yes <|im_end|>", "again", "no")},
            {"messages": chat("a", "b", weight=0)},
            {"messages": chat("a")},
        ],
    )
    store = str(made / "s")
    text = ("ingest", str(made / "prose.txt"), "--store", store, "--dataset", "prose", "--workers", "1")
    assert run(*text, "--tokenizer", str(made / "tokenizer.json"))[0] == 0
    (made / "base.yaml").write_text(BASE.format(folder=made))
    run_ranks(train_here, 1, str(made / "base.yaml"), ())
    chats = (
        "ingest",
        str(made / "chats.jsonl"),
        "--as",
        "chat",
        "--store",
        store,
        "--dataset",
        "chats",
        "--workers",
        "1",
    )
    status, out, err = run(*chats)
    assert (status, "skipped, unanswered" in out) == (0, True), err
    return made


def test_messages_are_ingested_and_rendered_and_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(folder / "s")
    words = ("dataset", "render", f"{store}/chats", "--workers", "1")
    status, out, err = run(*words, "--with", "base", "--template", str(folder / "chat.jinja"))
    assert status == 0, err
    assert "left out, no trained token 1: chats.jsonl: at " in " ".join(out.split())
    assert "records with special tokens as text 1" in " ".join(out.split())
    assert "[[yes <|im_end|><|im_end|>]]\n<|im_start|>user\nagain<|im_end|>" in out
    assert "hello\n\\u202ethere" in out, "control characters cannot steer the terminal"
    [commit] = open_dataset(open_store(store), "chats.base").commits()
    template = load_template(open_store(store), commit.body["extra"]["render"]["template"])
    assert template.text == template_of(FAMILY).text
    assert dict(template.special_tokens) == {"eos_token": "<|im_end|>"}, "the run's documents have no BOS"
    status, out, _ = run("dataset", "render", f"{store}/chats.base", "--json", "--show", "1")
    [shown] = json.loads(out)["shown"]
    assert json.loads(out)["commits"][0]["counts"]["records"] == 1
    assert [run["trained"] for run in shown["texts"][0]] == [False, True, False, True, False]
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    status, out, _ = run("dataset", "render", f"{store}/chats.base", "--show", "1")
    assert "\x1b[32m" in out
    assert "[[" not in out
    again = run(*words, "--with", f"{store}#base@1", "--template", str(folder / "chat.jinja"))
    assert "nothing was done" in again[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("chats",), "--with RUN"),
        (("chats", "--with", "bose"), "Did you mean base"),
        (("chats", "--with", "base", "--to", "x"), "no chat template renders them"),
        (("chats", "--with", "base", "--template", "none.jinja"), "template cannot be read"),
        (("chats", "--trained", "first"), "not one of"),
        (("chats", "--specials", "keep"), "not one of"),
        (("chats", "--too-long", "keep"), "not one of"),
        (("chats.base", "--with", "base"), "rendered already"),
        (("prose", "--with", "base", "--to", "x"), "holds no messages"),
    ],
)
def test_refusals_name_the_remedy(folder: Path, words: tuple[str, ...], told: str) -> None:
    store = str(folder / "s")
    if words == ("chats.base", "--with", "base"):
        run("dataset", "render", f"{store}/chats", "--with", "base", "--template", str(folder / "chat.jinja"))
    name, *options = words
    status, out, err = run("dataset", "render", f"{store}/{name}", *options)
    assert status != 0
    assert told in out + err
