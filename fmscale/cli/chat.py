"""`fmscale chat`: a conversation with a run's model, in the terminal or from a pipe."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmscale.cli.address import CheckpointArgument
from fmscale.cli.generate import utf8
from fmscale.cli.model import Device, MinP, Precision, Repetition, Temperature, Threads, TopK, TopP, open_model
from fmscale.cli.output import example, print_error, say, say_lines, write
from fmscale.errors import ConfigError, FmscaleError

if TYPE_CHECKING:
    from fmscale.infer.answer import ChatModel
    from fmscale.infer.sampling import Sampling

HELP = (
    "/reset  forget the conversation     /undo  forget the last message  /system TEXT  set the system prompt, or none\n"
    "/save FILE  write the messages      /quit  end, as ctrl-d           //TEXT  a message that begins with a slash"
)

app = typer.Typer()


@app.command(epilog=example("fmscale chat runs/store#run", 'fmscale chat runs/store#run --system "Answer in French."'))
def chat(
    address: CheckpointArgument,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer.")] = 512,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition: Repetition = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; answer n draws from SEED + n.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer. Repeatable.")] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
) -> None:
    """Talk with a run's model, which keeps the conversation.

    A line is a message; /help lists the commands. Ctrl-c stops an answer, ctrl-d ends. From a pipe the answers are
    exact, and the first error ends the chat. The oldest messages are left out where the context is full.
    """
    from fmscale.infer.answer import ChatModel
    from fmscale.infer.products import packed
    from fmscale.infer.sampling import Sampling

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition, seed=seed
    )
    trained = open_model(address, device, precision)
    model = ChatModel(trained)
    talk = _Talk(model, sampling, max_tokens, stop=tuple(stop or ()), threads=threads)
    talk.set_system(system or "")
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # `utf8` tells what is none
    if sys.stdin.isatty():
        import readline  # noqa: F401  (edits the line of `input`)

        say(f"run {trained.run}, step {trained.step}; /help lists the commands, ctrl-d ends", err=True)
    with packed(trained.model):
        while (line := _line()) is not None and talk.hear(line):
            pass


def _line() -> str | None:
    """The next line; None at the end. Ctrl-c at the prompt drops the line."""
    while True:
        try:
            return input("> ") if sys.stdin.isatty() else (sys.stdin.readline() or None)
        except EOFError:
            say(err=True)
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            say("\n/quit or ctrl-d ends", err=True)


class _Talk:
    """The messages so far, and the commands about them."""

    def __init__(self, model: "ChatModel", sampling: "Sampling", max_tokens: int, **options: Any) -> None:
        self._model, self._sampling, self._max_tokens, self._options = model, sampling, max_tokens, options
        self._messages: list[dict[str, str]] = []
        self._answers, self._saved = 0, set[Path]()
        self._commands: dict[str, Callable[[str], Any]] = {
            "/reset": lambda text: self._forget(self._questions()[:1], "the conversation"),
            "/undo": lambda text: self._forget(self._questions()[-1:], "the last message and its answer"),
            "/system": self.set_system,
            "/save": self._save,
            "/help": lambda text: say_lines(HELP, err=True),
        }

    def hear(self, line: str) -> bool:
        """Obey a command or answer a message; False at /quit."""
        try:
            text = utf8(line).strip()
            word, _, rest = text.partition(" ")
            if word == "/quit":
                return False
            if word in self._commands:
                self._commands[word](rest.strip())
            elif text.startswith("/") and not text.startswith("//"):
                raise ConfigError("No such command", found=word, remedy="/help lists the commands.")
            elif text:
                self._answer(text.removeprefix("/") if text.startswith("//") else text)
        except FmscaleError as error:
            if not sys.stdin.isatty():
                raise
            print_error(error)
        return True

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        room = min(self._max_tokens, max(1, self._model.context // 4))
        with _interruptible() as interrupted:
            ids, left_out = self._model.fitted(asked, room)
            if left_out:
                say(f"(left out, as the context is full: the oldest {left_out} messages)", err=True)
            (answer,) = self._model.answers(
                ids,
                max_tokens=min(self._max_tokens, self._model.context - len(ids)),
                sampling=replace(self._sampling, seed=self._sampling.seed + self._answers),
                **self._options,
                on_text=lambda number, piece: write(piece),
                cancelled=lambda: bool(interrupted),
            )
        write("\n")
        notes = {"length": f"cut after {answer.tokens} tokens", "cancelled": "stopped"}
        if answer.end in notes:
            say(f"({notes[answer.end]})", err=True)
        self._answers += 1
        self._messages = [*asked, {"role": "assistant", "content": answer.text}]

    def _questions(self) -> list[int]:
        return [number for number, message in enumerate(self._messages) if message["role"] == "user"]

    def _forget(self, question: list[int], what: str) -> None:
        if not question:
            raise ConfigError("There is nothing to forget", found="no message", remedy="Write a message first.")
        del self._messages[question[0] :]
        say(f"forgot {what}", err=True)

    def set_system(self, text: str) -> None:
        """Give the conversation another system prompt, or none."""
        others = [message for message in self._messages if message["role"] != "system"]
        self._messages = [*([{"role": "system", "content": text}] if text else []), *others]

    def _save(self, name: str) -> None:
        """Write the messages as a line of JSON, which `fmscale ingest --as chat` reads."""
        path = Path(name).expanduser()
        text = json.dumps({"messages": self._messages}, ensure_ascii=False) + "\n"
        try:
            with path.open("w" if path in self._saved else "x", encoding="utf-8") as file:
                file.write(text)
        except (OSError, ValueError) as error:
            raise ConfigError(
                "The messages cannot be written", found=f"{name}: {error}", remedy="Write /save with another FILE."
            ) from error
        self._saved.add(path)
        say(f"{len(self._messages)} messages in {name}", err=True)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that the first ctrl-c fills; the second interrupts."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
