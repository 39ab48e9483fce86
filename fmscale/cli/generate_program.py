"""The part of `fmscale generate` that runs a prompt program."""

import json as jsonlib

from fmscale.cli.model import open_model
from fmscale.cli.output import print_json, record, say, say_lines
from fmscale.errors import ConfigError


def run_prompt_program(
    address: str,
    name: str,
    values: list[str],
    *,
    device: str,
    precision: str | None,
    threads: int | None,
    json: bool,
) -> None:
    """Ask a run's model by a program; print the question, the replies, the answers in them, and the votes."""
    from fmscale.infer.prompt import load_program, run_program
    from fmscale.infer.prompt.program import with_values

    program = with_values(load_program(name), values)
    trained = open_model(address, device, precision)
    answered = run_program(trained, program, [{}], names=[f"program {name}"], threads=threads)[0]
    if json:
        print_json({"run": trained.run, "step": trained.step, "program": name, **vars(answered)})
        return
    say_lines(answered.prompt)
    for number, (reply, parsed) in enumerate(zip(answered.replies, answered.parsed, strict=True), 1):
        say(f"--- reply {number} of {len(answered.replies)}, answer {jsonlib.dumps(parsed, ensure_ascii=False)} ---")
        say_lines(reply)
    votes = ", ".join(f"{answer}: {count}" for answer, count in answered.votes.items())
    record({"answer": answered.answer, "votes": votes or "none"}, json=False)


def require_alone(given: object) -> None:
    """Raise ConfigError for prompts beside a program."""
    if given:
        raise ConfigError(
            "A program makes the prompt itself", found=given, remedy="Give its values by --set KEY=VALUE instead."
        )
