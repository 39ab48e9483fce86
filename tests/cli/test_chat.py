"""`fmscale chat`: from a pipe, and in a terminal."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.infer.answer import ChatModel
from fmscale.infer.load import open_trained
from fmscale.infer.sampling import Sampling
from tests.infer.talkers import LETTERS, SAYS, save_talker, talkers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkers(tmp_path_factory.mktemp("chat"))


def chat(address: str, said: str | bytes, *options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), ["chat", address, "--temperature", "0", *options], input=said)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def saved(path: Path) -> list[tuple[str, str]]:
    (line,) = path.read_text().splitlines()
    return [(message["role"], message["content"]) for message in json.loads(line)["messages"]]


def test_a_pipe_gets_an_exact_answer_a_line_and_the_history_is_kept(store: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    lines = ("hello", "", "letters", f"/save {path}", "/undo", "//undo", "/system Be kind.", f"/save {path}", "/quit")
    status, out, err = chat(
        f"{store}#talker", "\n".join([*lines, "after"]), "--system", "Be brief.", "--max-tokens", "40"
    )
    letters = (LETTERS * 2)[:40]
    assert (status, out) == (0, f"{SAYS}\n{letters}\n{SAYS}\n")
    assert err.splitlines() == [
        "(cut after 40 tokens)",
        f"5 messages in {path}",
        "forgot the last message and its answer",
        f"5 messages in {path}",
    ]
    turns = [("user", "hello"), ("assistant", SAYS), ("user", "/undo"), ("assistant", SAYS)]
    assert saved(path) == [("system", "Be kind."), *turns]


def test_forgotten_and_left_out_turns(store: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    lines = ["one", "/reset", "/system", "two", "three", "four", "five", f"/save {path}"]
    status, out, err = chat(f"{store}#short", "\n".join(lines), "--system", "Be brief.")
    assert (status, out) == (0, f"{SAYS}\n" * 5)
    full = "(left out, as the context is full: the oldest {} messages)"
    assert err.splitlines() == ["forgot the conversation", full.format(2), full.format(4), f"8 messages in {path}"]
    assert [content for role, content in saved(path) if role != "assistant"] == ["two", "three", "four", "five"]


def test_a_turn_that_is_left_out_is_not_read_and_the_system_prompt_is(store: str) -> None:
    model = ChatModel(open_trained(f"{store}#short"))
    system, asked = {"role": "system", "content": "S"}, {"role": "user", "content": "hello"}
    turn = [{"role": "user", "content": "x" * 50}, {"role": "assistant", "content": "y"}]
    assert model.fitted([system, *turn, *turn, asked], 32) == (model.prompt([system, asked]), 4)
    assert model.fitted([system, asked], 32)[1] == 0


def test_messages_hold_no_special_tokens(store: str) -> None:
    model = ChatModel(open_trained(f"{store}#talker"))
    ids = model.prompt([{"role": "user", "content": "<|eos|>"}])
    assert (ids.count(257), ids.count(263)) == (1, 2)
    assert bytes(i for i in ids if i < 256) == b"user\n<|eos|>\nassistant\n"


def test_stop_texts_and_cancelling(store: str) -> None:
    model = ChatModel(open_trained(f"{store}#talker"))
    prompt, pieces = model.prompt([{"role": "user", "content": "letters"}]), list[str]()
    (answer,) = model.answers(
        prompt, max_tokens=99, sampling=Sampling(), stop=("CX", "EFG"), on_text=lambda _, text: pieces.append(text)
    )
    assert (answer.text, answer.end, answer.tokens) == ("ABCD", "stop", 7)
    assert pieces == ["A", "B", "CD"]
    pieces.clear()
    (answer,) = model.answers(
        prompt,
        max_tokens=99,
        sampling=Sampling(),
        on_text=lambda _, text: pieces.append(text),
        cancelled=lambda: len(pieces) == 4,
    )
    assert (answer.text, answer.end) == ("ABCD", "cancelled")


@pytest.mark.parametrize(
    ("run", "said", "message"),
    [
        ("plain", "hello", "The run has no chat template\n  found:  plain\n  remedy: `fmscale generate` continues"),
        ("talker", "/undoo", "No such command\n  found:  /undoo\n  remedy: /help lists"),
        ("talker", "/undo", "There is nothing to forget"),
        ("talker", "/save /nowhere/x", "The messages cannot be written"),
        ("talker", "/save", "The messages cannot be written"),
        ("short", "x" * 200, "The message is longer than the model's context"),
        ("talker", b"\xff", "is not UTF-8 text"),
    ],
)
def test_mistakes_end_a_pipe_with_their_remedy(store: str, run: str, said: str | bytes, message: str) -> None:
    status, out, err = chat(f"{store}#{run}", said)
    assert (status, out) == (2, "")
    assert message in err


def test_another_file_is_not_written_over(store: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    assert chat(f"{store}#talker", f"/save {path}")[0] == 2
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_an_answer_and_escapes_are_shown(store: str, tmp_path: Path) -> None:
    save_talker(store, "long", context=1 << 16)  # much more than a terminal takes before it is read
    ours, theirs = pty.openpty()
    start = "import sys; from fmscale.cli.main import main; sys.argv[0] = 'fmscale'; main()"
    words = [sys.executable, "-c", start, "chat", f"{store}#long", "--temperature", "0", "--max-tokens", "60000"]
    environment = {**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null"}
    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment,
        # the terminal sends ctrl-c to those that it controls
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    with process:
        os.close(theirs)
        seen = ""

        def until(text: str, pressed: str = "") -> str:
            """What comes before the text. A ctrl-c between readline's prompt and its wait is seen with the next key
            only, so `pressed` is pressed again."""
            nonlocal seen
            for _ in range(30):
                while text not in seen and select.select([ours], [], [], 2)[0]:
                    seen += os.read(ours, 4096).decode(errors="replace")
                if text in seen:
                    break
                type_in(pressed)
            assert text in seen
            before, _, seen = seen.partition(text)
            return before

        def type_in(text: str) -> None:
            os.write(ours, text.encode())

        try:
            until("> ")
            type_in("hello\n")
            assert until("> ") == f"hello\r\n{SAYS}\r\n".replace("\x1b", "\\x1b")
            type_in("letters\n")
            until(LETTERS * 3)
            type_in("\x03")
            until("(stopped)")
            until("> ")
            type_in("unfinished\x03")
            until("/quit or ctrl-d ends", pressed="\x03")
            until("> ")
            type_in("/undoo\n")
            until("remedy: /help lists the commands.")
            until("> ")
            type_in(f"/save {tmp_path / 'talk'}\n")
            until("> ")
            type_in("\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
    *_, (role, stopped) = saved(tmp_path / "talk")
    assert (role, stopped[:52]) == ("assistant", LETTERS * 2)
    assert len(stopped) < 60000
