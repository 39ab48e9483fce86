"""`fmscale generate`: continues prompts with a run's model, and prints the text as it comes."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fmscale.cli.address import CheckpointArgument
from fmscale.cli.generate_program import require_alone, run_prompt_program
from fmscale.cli.model import (
    Device,
    MinP,
    Precision,
    Repetition,
    Temperature,
    Threads,
    TopK,
    TopP,
    open_model,
)
from fmscale.cli.output import JsonOption, example, print_json, say, write
from fmscale.errors import ConfigError

app = typer.Typer()


@app.command(
    epilog=example(
        'fmscale generate runs/store#run "def main(" --max-tokens 64',
        "fmscale generate runs/store#run@1000 --file prompt.txt --temperature 0 --json",
        "fmscale generate runs/store#run --program translate --set sentence='Good morning.'",
    )
)
def generate(
    address: CheckpointArgument,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to go on from.")] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="A file whose text is a prompt; - for standard input. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens after each prompt.")] = 128,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition: Repetition = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; the same seed says the same again.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A text before which a completion ends. Repeatable.")] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json: tokens and their probabilities.")] = False,
    slots: Annotated[int, typer.Option(min=1, help="Completions that grow together.")] = 16,
    program: Annotated[
        str | None, typer.Option(help="A prompt program in YAML, or a shipped program, instead of prompts.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of the program. Repeatable.")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    json: JsonOption = False,
) -> None:
    """Go on from prompts with a run's model.

    Text is printed as it comes; of several prompts, which grow together, one after another. Generation ends at
    the model's end-of-document token, before a --stop text, or after --max-tokens. A program has its own settings of
    tokens and draws.
    """
    if program is not None:
        require_alone([*(prompts or []), *(file or [])])
        run_prompt_program(
            address, program, values or [], device=device, precision=precision, threads=threads, json=json
        )
        return
    texts = _texts(prompts or [], file or [])
    if not texts:
        remedy = "Give a text, --file PATH, or --file - for standard input."
        raise ConfigError("There is no prompt", found="no text", remedy=remedy)
    if logprobs and not json:
        raise ConfigError("Log-probabilities are not printed as text", found="--logprobs", remedy="Add --json.")
    from fmscale.infer import Sampling
    from fmscale.infer import generate as grow

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition, seed=seed
    )
    trained = open_model(address, device, precision)
    ids = [trained.encode(text) for text in texts]
    printer = _Printer(texts, samples, show=not json)
    began = time.monotonic()
    results = grow(
        trained.model,
        ids,
        max_tokens=max_tokens,
        sampling=sampling,
        samples=samples,
        eos=trained.eos,
        stop=stop or [],
        decode=trained.tokenizer.decode,
        logprobs=logprobs,
        slots=slots,
        vocabulary=trained.tokenizer.vocab_size,
        threads=threads,
        on_token=printer.add,
    )
    seconds = time.monotonic() - began
    tokens = sum(len(result.tokens) for result in results)
    if json:
        completions = [
            {"prompt": text, "completion": result.text, "tokens": len(result.tokens), "stop": result.stop}
            | ({"token_ids": result.tokens, "end": result.end} if logprobs else {})
            | ({"logprobs": result.logprobs, "drawn_logprobs": result.drawn_logprobs} if logprobs else {})
            for text, result in zip(printer.texts, results, strict=True)
        ]
        print_json({"run": trained.run, "step": trained.step, "seconds": seconds, "completions": completions})
    else:
        summary = f"run {trained.run}, step {trained.step}: {tokens} tokens in {seconds:.1f} s"
        say(f"{summary}, {tokens / seconds:,.0f} tokens/s", err=True)


class _Printer:
    """Prints completions in turn, each token by token, while the model generates all of them together."""

    def __init__(self, texts: list[str], samples: int, *, show: bool) -> None:
        self.texts = [text for text in texts for _ in range(samples)]
        self._completions = [""] * len(self.texts)
        self._ended: set[int] = set()
        self._current = -1
        self._show = show

    def add(self, number: int, token: int | None, piece: str) -> None:
        """Text of a token of a completion, or of its end."""
        if self._current < 0:
            self._next()
        self._completions[number] += piece
        if number == self._current:
            self._write(piece)
        if token is None:
            self._ended.add(number)
        while self._current in self._ended:
            self._write("\n")
            self._next()

    def _next(self) -> None:
        self._current += 1
        if self._current < len(self.texts):
            count = len(self.texts)
            self._write(f"--- {self._current + 1} of {count} ---\n" if count > 1 else "")
            self._write(self.texts[self._current] + self._completions[self._current])

    def _write(self, text: str) -> None:
        if self._show and text:
            write(text)


def _texts(prompts: list[str], files: list[str]) -> list[str]:
    texts = [utf8(text) for text in prompts]
    for name in files:
        try:
            texts.append(utf8(sys.stdin.read()) if name == "-" else Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "A prompt cannot be read as UTF-8 text", found=f"{name}: {error}", remedy="Name a text file."
            ) from error
    return texts


def utf8(text: str) -> str:
    """Text of the console. Where its encoding is ASCII, Python has the bytes of other characters as surrogates."""
    try:
        return os.fsencode(text).decode("utf-8") if any("\udc80" <= c <= "\udcff" for c in text) else text
    except UnicodeDecodeError as error:
        remedy = "Use a UTF-8 terminal, or put the prompt into a file for --file."
        raise ConfigError("A prompt is not UTF-8 text", found=ascii(text), remedy=remedy) from error
