"""The acts of `fmscale quickstart life`: data, pretraining, chats, a full and a low-rank fine-tuning, preferences.

Each act is a verb of fmscale with the words that a user would type, in a process of its own; the report lists them.
Every verb goes on where it was or finds its work done, so a stopped tour is run again.
"""

import json
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.checkpoint.format.piece import elements
from fmscale.errors import FmscaleError
from fmscale.quickstart.life.page import render
from fmscale.quickstart.life.problems import (
    DIRECT,
    STEPS,
    TEMPLATE,
    Problem,
    chats,
    pairs,
    problems,
    texts,
    tokenizer_json,
)
from fmscale.quickstart.training import program
from fmscale.runtime.provenance import this_machine
from fmscale.runtime.sinks.jsonl import read_jsonl

Report = dict[str, Any]
RUNS = ("pretrained", "sft", "lora", "dpo")
"""Names of the runs, in their order."""
WAYS = {"plain": "", "direct": f" {DIRECT}", "steps": f" {STEPS}"}
"""Words behind a question, by the name of the way to ask."""
TESTED = 200
"""Problems that no run was trained on."""
SHOWN = 4
"""Problems whose answers the page has side by side."""
LAST_LINES = 8


class ActFailed(FmscaleError):
    """A verb of the tour ended with an error."""


def run_life(folder: Path, tell: Callable[[str], None], *, tested: int = TESTED, keys: Sequence[str] = ()) -> Report:
    """Run all acts in `folder`, write report.json and report.html, and return the report. Raises ActFailed.

    `tested`: problems that are asked. `keys`: overrides of the configs of all runs, as KEY=VALUE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began, busy = time.monotonic(), _cpu_seconds()
    tour = _Tour(folder, tell, keys)
    tour.write_inputs(tested)
    tour("ingest the texts", "ingest", "texts.jsonl", *tour.at("texts"), "--tokenizer", "tokenizer.json")
    tour.train("pretrained", "life/pretrain")
    for name, shape in (("chats", "chat"), ("pairs", "preference")):
        tour(f"ingest the {name}", "ingest", f"{name}.jsonl", *tour.at(name), "--as", shape)
        words = ("--with", "pretrained", "--template", "chat.jinja", "--to", f"{name}.rendered", "--show", "0")
        tour(f"render the {name}", "dataset", "render", f"store/{name}", *words)
    tour.train("sft", "life/sft")
    tour.train("lora", "life/lora")
    column = ("--column", "reference", "--with", f"sft@{tour.steps('sft')}", "--precision", "fp32")
    tour("log-probs of the reference", "dataset", "derive", "store/pairs.rendered", *column)
    tour.train("dpo", "life/dpo", f"objective.reference=sft@{tour.steps('sft')}")
    cells = {run: tour.evaluate(run) for run in RUNS[1:]}
    report: Report = {
        "runs": {run: tour.facts(run) for run in RUNS},
        "accuracy": {run: {way: cell["metric"] for way, cell in ways.items()} for run, ways in cells.items()},
        "samples": _samples(cells, list(problems(3, min(tested, SHOWN)))),
        "commands": tour.commands,
        "machine": this_machine(),
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": _cpu_seconds() - busy,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    curves = {
        run: [one for one in read_jsonl(folder / "runs" / run / "metrics.jsonl") if "loss" in one] for run in RUNS
    }
    (folder / "report.html").write_text(render(report, curves), encoding="utf-8")
    return report


def table_rows(report: Report) -> list[dict[str, str]]:
    """Share of right answers by run and way to ask, with the 95 % interval."""
    return [
        {"run": run, **{way: f"{one['value']:.1%} [{one['low']:.1%}, {one['high']:.1%}]" for way, one in ways.items()}}
        for run, ways in report["accuracy"].items()
    ]


class _Tour:
    """Runs verbs in a folder, and remembers them."""

    def __init__(self, folder: Path, tell: Callable[[str], None], keys: Sequence[str]) -> None:
        self.folder, self.tell, self.keys = folder, tell, keys
        self.commands: list[dict[str, Any]] = []

    def __call__(self, title: str, *words: str) -> str:
        """Run a verb, and return its standard output."""
        self.tell(title)
        began = time.monotonic()
        command = [program(), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        self.commands.append(
            {"title": title, "command": f"fmscale {' '.join(words)}", "seconds": time.monotonic() - began}
        )
        if done.returncode:
            raise ActFailed(
                f"the act did not succeed: {title}",
                found="\n".join(done.stderr.strip().splitlines()[-LAST_LINES:]) or f"status {done.returncode}",
                remedy=f"Mend this, and run the same command again: it goes on from there. Folder: {self.folder}.",
            )
        return done.stdout

    @staticmethod
    def at(dataset: str) -> tuple[str, ...]:
        """Options of a dataset in the tour's store."""
        return ("--store", "store", "--dataset", dataset)

    def train(self, run: str, config: str, *overrides: str) -> None:
        """Train a run to its end."""
        self(f"train {run}", "train", config, *overrides, *self.keys)

    def facts(self, run: str) -> Mapping[str, Any]:
        """Last record of a run, and its number of trained parameters."""
        checkpoint = open_checkpoint(f"{self.folder / 'store'}#{run}")
        trained = [tensor for tensor in checkpoint.manifest.tensors if tensor.state == "exp_avg"]
        records = read_jsonl(self.folder / "runs" / run / "metrics.jsonl")
        last = [one for one in records if "loss" in one and "event" not in one][-1]
        return {
            "steps": checkpoint.step,
            "loss": last["loss"],
            "parameters": sum(elements(tensor.shape) for tensor in trained),
            "bytes": checkpoint.found.bytes + checkpoint.found.referenced,
        }

    def steps(self, run: str) -> int:
        """Steps of a run."""
        return int(self.facts(run)["steps"])

    def evaluate(self, run: str) -> dict[str, dict[str, Any]]:
        """Accuracy and documents of a run, by the way to ask."""
        out = self.folder / f"{run}.jsonl"
        programs = [word for way in WAYS for word in ("--program", f"{way}.yaml")]
        words = (f"store#{run}", "--task", "problems.yaml", *programs, "--to", out.name, "--json")
        self(f"evaluate {run}", "evaluate", *words)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        cells = {}
        for way in WAYS:
            mine = [line for line in lines if line["asked_by"] == f"{way}.yaml"]
            head = next(line for line in mine if "metrics" in line)
            cells[way] = {"metric": head["metrics"][0], "documents": [line for line in mine if "metrics" not in line]}
        return cells

    def write_inputs(self, tested: int) -> None:
        """Write data, tokenizer, template, task and programs, the same in every try."""
        self._lines("texts.jsonl", texts(0, 40_000))
        self._lines("chats.jsonl", chats(1, 6_000))
        self._lines("pairs.jsonl", pairs(2, 1_000))
        self._lines("problems.jsonl", ({"question": one.question, "answer": one.answer} for one in problems(3, tested)))
        self._text("tokenizer.json", tokenizer_json())
        self._text("chat.jinja", TEMPLATE)
        answer = "{find: number, take: last}"
        self._text(
            "problems.yaml",
            f'kind: generate\ntext: "{{{{ question }}}}"\ntarget: "{{{{ answer }}}}"\ndocuments: problems.jsonl\n'
            f"answer: {answer}\n",
        )
        for way, words in WAYS.items():
            self._text(f"{way}.yaml", f'form: chat\nsuffix: "{words}"\nmax_tokens: 64\nparser: {answer}\n')

    def _lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self._text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def _text(self, name: str, text: str) -> None:
        path = self.folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # a new stamp would be another file
            path.write_text(text, encoding="utf-8")


def _samples(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], asked: Sequence[Problem]) -> list[dict[str, Any]]:
    """Answers of all runs to the same questions."""
    found = []
    for number, problem in enumerate(asked):
        said = {
            f"{run}/{way}": {
                "text": ways[way]["documents"][number]["replies"][0],
                "right": bool(ways[way]["documents"][number]["right"]),
            }
            for run, ways in cells.items()
            for way in WAYS
        }
        found.append({"question": problem.question, "target": problem.answer, "said": said})
    return found


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
