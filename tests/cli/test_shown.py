"""Output for people, wherever it is printed: without credentials, and without characters that a terminal obeys."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
from fmscale.cli import main
from fmscale.cli.launch import _say
from fmscale.cli.main import build_app
from fmscale.cli.output import print_error, print_json, record, say, table
from fmscale.cli.quickstart_screen import make_screen
from fmscale.cli.train_screen import RunScreen
from fmscale.config import load_config
from fmscale.config.checks import together
from fmscale.errors import ConfigError, FmscaleError
from fmscale.runtime.failure import Whereabouts, describe_failure, failure_report
from fmscale.runtime.sinks.console import print_record
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from tests.helpers.ranks import run_ranks
from tests.train.runs import make_corpus, train_here, write_config

SECRET = "N0tForEyes"
SHAPES = (
    f"https://host/c?sv=1&AccountKey={SECRET}",
    f"https://host/c?sp=r&sig={SECRET}",
    f"https://host/c?key={SECRET}",
    f"s3:///p?endpoint=http://u:{SECRET}@h",
    f"s3:///p?endpoint=http%3A%2F%2Fu%3A{SECRET}%40h",
    f"s3://AKIAX:w/J+al{SECRET}@bucket/p",
    f"sftp://me:p#a?s/{SECRET}@h:22/x",
    f"https://{SECRET}@host/x",
    f"mysql://u:a@{SECRET}@h/x",
    f"{{'aws_secret_access_key': 'two words {SECRET}'}}",
    f"x-api-key: {SECRET}",
    f"api-key={SECRET}",
    f"passphrase: {SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"hf_abcdefghijk{SECRET}",
    f"ghp_abcdefghijk{SECRET}",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.{SECRET}",
    f"sk-proj-abcdefgh{SECRET}",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    f"told in an environment variable: of/+{SECRET}",
    f"the same in a URL: of%2F%2B{SECRET}",
)
STEER = "\x1b[31mred\nerror: forged \u202egnp.exe \x9b2J\u2028line \udcc3"
"""A name that colours, breaks the line, turns the direction, clears the screen, and is no UTF-8."""
ESCAPED = r"\x1b[31mred\nerror: forged \u202egnp.exe \x9b2J\u2028line \udcc3"


def of_error(text: str) -> None:
    for error in (FmscaleError(text, found=text, remedy=text), FmscaleError("c", found=[text], remedy="r")):
        print_error(error)
        say(f"{error} {error!r}")
        say(describe_failure(failure_report(error, World(), Whereabouts())).replace("\n", " "))
    print_error(together([ConfigError(text, remedy=text), ConfigError(text, remedy=text)]))


def of_log(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        log = logging.LogRecord("n", logging.WARNING, "p", 1, "%s", (text,), (type(error), error, None))
        print(main._PlainFormatter().format(log), file=sys.stderr)
        main._print_traceback(type(error), error, None)


def of_run(text: str, path: Path) -> None:
    screen = RunScreen(load_config(path), World(), stream=sys.stderr)
    screen._fact("data", text)
    screen.end(3, text)
    print_record({"event": "resumed", "run": text}, sys.stderr)


def of_quickstart(text: str) -> None:
    with make_screen(silent=False) as screen:
        screen.tell(text)
        screen.end("train", text)


PRINTERS: dict[str, Callable[[str], None]] = {
    "table": lambda text: table([{"name": text, "names": [text]}], json=False),
    "record": lambda text: record({text: text}, json=False),
    "say": say,
    "launch": _say,
    "error": of_error,
    "log": of_log,
    "quickstart": of_quickstart,
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", f"of/+{SECRET}")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    return write_config(folder, make_corpus(folder))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("printer", [*PRINTERS, "run"])
def test_no_printer_shows_a_secret(printer: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in SHAPES:
        of_run(shape, path) if printer == "run" else PRINTERS[printer](shape)
        shown = "".join(capsys.readouterr())
        assert SECRET not in shown, shape
        assert "***" in shown, shape


@pytest.mark.parametrize("printer", [*(name for name in PRINTERS if name != "launch"), "run"])
def test_no_printer_obeys_a_name(printer: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run(STEER, path) if printer == "run" else PRINTERS[printer](STEER)
    lines = "".join(capsys.readouterr()).split("\n")
    assert all(line.isprintable() for line in lines)
    if printer != "log":  # a traceback has the lines of its message
        assert not [line for line in lines if line.startswith("error: forged")]
        assert ESCAPED in "\n".join(lines).replace("\\\\", "\\")


def test_the_verbs_print_through_what_is_tested_here() -> None:
    """Only these lines reach a stream by themselves; each cleans its text."""
    lines = [line for path in Path(main.__file__).parent.glob("*.py") for line in path.read_text().splitlines()]
    found = [line.strip() for line in lines if re.search(r"typer\.echo\(|(?<![\w.])print\(|\.console\.print\(", line)]
    assert [
        line for line in found if not re.search(r"clean\(|printable|__version__|_as_json|print\(text, end", line)
    ] == []


def test_json_has_the_name_itself_and_no_character_that_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [STEER, "naïve 文書 \u3000 👍🏽"]
    print_json(names)
    shown = capsys.readouterr().out
    assert json.loads(shown) == names
    assert all(line.isprintable() or "\u3000" in line for line in shown.split("\n"))
    assert "naïve 文書" in shown


VERBS = (
    "dataset list --store URL", "dataset show --store URL --dataset d", "dataset verify --store URL --dataset d",
    "dataset trace --store URL --run r --step 1", "checkpoint list --store URL", "checkpoint verify URL#r",
    "doctor URL", "generate URL#r hello", "evaluate URL#r", "ingest README.md --store URL --dataset d",
    "plan CONFIG store.url=URL", "plan CONFIG train.init=URL#r", "train CONFIG store.url=URL",
    "launch CONFIG store.url=URL --with deepspeed --dry-run", "train CONFIG URL", "doctor URL URL URL",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_shows_the_secret_of_an_address(verb: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "else")
    for url in (SHAPES[3], SHAPES[5], f"memory://x/y?AccountKey={SECRET}", f"nosuch://u:{SECRET}@h/c"):
        words = [word.replace("URL", url).replace("CONFIG", str(path)) for word in verb.split()]
        result = CliRunner().invoke(build_app(), words)
        assert result.exit_code == 2 or "--dry-run" in words, (url, result.output)
        assert isinstance(result.exception, SystemExit) or "--dry-run" in words, result.exception
        assert SECRET not in result.output, url


def test_the_launch_environment_is_shown_and_stored_by_name_alone(path: Path) -> None:
    own = (f"launch.environment={{NCCL_DEBUG: lo0-quiet, WANDB_API_KEY: {SECRET}}}", "train.run=env", "train.steps=1")
    more = (*own, f"launch.arguments=['--export=HF_SECRET={SECRET}']")
    for words in (("plan", "--json"), ("plan", "--config"), ("launch", "--with", "deepspeed", "--dry-run")):
        shown = CliRunner().invoke(build_app(), [words[0], str(path), *more, *words[1:]]).output
        assert "WANDB_API_KEY" in shown
        assert SECRET not in shown
        assert ("lo0-quiet" in shown) == (words[0] == "launch"), "a dry run shows what ranks get"
    run_ranks(train_here, 1, str(path), more, timeout=120)
    backend = open_store(load_config(path).store.url)
    [saved] = list_checkpoints(backend, "env")
    meta = load_manifest(backend, saved).meta
    assert meta["config"]["launch"]["environment"] == {"NCCL_DEBUG": "***", "WANDB_API_KEY": "***"}
    assert SECRET not in json.dumps(meta)


def test_an_accented_prompt_on_an_ascii_console(tmp_path: Path) -> None:
    """Python then has the prompt's bytes as surrogates, and its streams lack the characters of an answer."""
    code = "import sys; from fmscale.cli import generate, main; main._open_streams(); "
    code += "[text] = generate._texts(sys.argv[1:], []); assert text == 'd\\xe9j\\xe0 vu', ascii(text); print(text)"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code, "déjà vu"]
    done = subprocess.run(command, env=ascii_only, capture_output=True, check=True)
    assert done.stdout == b"d\\xe9j\\xe0 vu\n"
    refused = subprocess.run([*command[:-1], b"d\xe9j\xe0"], env=ascii_only, capture_output=True, text=True)
    assert "A prompt is not UTF-8 text" in refused.stderr
