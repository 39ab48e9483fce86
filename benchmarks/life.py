"""`fmscale bench life`: fine-tuning, adapters, preferences, generation, evaluation and imports, beside their peers.

TRL, PEFT, transformers and lm-eval run in an environment of their own (`make bench-life-env`), in turns with ours, on
the same weights and data; losses, tokens or results are compared before times. Times are CPU seconds of a process with
one thread, as the machine is shared. A part is a file and measures its claims together; `only` chooses parts by the ids
of their claims.
"""

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Claim, write_results
from benchmarks.peers.common import cpu_seconds
from fmscale.errors import ConfigError

PEERS = ROOT / ".venv-life" / "bin" / "python"
PACKAGES = ["torch", "transformers", "trl", "peft", "lm-eval", "datasets", "accelerate"]
TOUR = ROOT / "runs" / "life" / "report.json"
"""Report of `fmscale quickstart life`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Claims that are measured together."""

    module: str
    """Module with `run(*, quick, peers)`, which returns claims as in a results file."""
    ids: tuple[str, ...]
    """First words of its claims' ids."""


PARTS = (
    Part(module="life_sft", ids=("F1", "F2", "F19")),
    Part(module="life_adapters", ids=("F3", "F4", "F5")),
    Part(module="life_preferences", ids=("F6", "F7", "F8")),
    Part(module="life_generate", ids=("F9",)),
    Part(module="life_bits", ids=("F10", "F11", "F17")),
    Part(module="life_evaluate", ids=("F16",)),
    Part(module="life", ids=("F15",)),
)


def run(*, quick: bool = False, only: Sequence[str] = (), peers: Path = PEERS) -> list[dict[str, Any]]:
    """Measure all claims, or the parts with a claim that a word of `only` names.

    Writes benchmarks/results/life.json, or life.part.json, which git ignores, for a choice of parts. Returns the claims
    as in that file. Raises ConfigError for a word without a claim, and without the environment of the peers.
    """
    parts = choose(only)
    if not peers.exists():
        raise ConfigError(
            "the peers of this benchmark are not installed", found=str(peers), remedy="Run `make bench-life-env`."
        )
    claims = [claim for part in parts for claim in measured(part, quick=quick, peers=peers)]
    made = [Claim(**claim) for claim in claims]
    write_results("life", made, quick=quick, packages=PACKAGES, part=bool(only), peers=str(peers))
    return claims


def choose(only: Sequence[str]) -> list[Part]:
    """The parts with a claim that a word names (F1, or F1.bfd, but not F16)."""
    words = {word.split(".")[0] for word in only}
    ids = [id for part in PARTS for id in part.ids]
    for word in words - set(ids):
        raise ConfigError("no claim of this benchmark has that name", found=word, remedy=f"One of: {', '.join(ids)}.")
    return [part for part in PARTS if not words or words & set(part.ids)]


def measured(part: Part, *, quick: bool, peers: Path) -> list[dict[str, Any]]:
    """The part's claims. A failure leaves its claims without a value, with this reason; the other parts go on."""
    started, cpu = time.monotonic(), cpu_seconds()
    try:
        if part.module == "life":
            claims = [asdict(steps_claim(TOUR))]
        else:
            claims = importlib.import_module(f"benchmarks.{part.module}").run(quick=quick, peers=peers)
    except (RuntimeError, AssertionError) as error:
        reasons = {"fmscale": str(error)}
        claims = [asdict(Claim(id=id, what="not measured", unit="", ours=None, reasons=reasons)) for id in part.ids]
    took = f"{time.monotonic() - started:.0f} s, {cpu_seconds() - cpu:.0f} CPU s"
    print(f"measured {', '.join(part.ids)} in {took}", flush=True)
    return claims


def steps_claim(report: Path) -> Claim:
    """F15: right answers of the same weights, asked directly and step by step, as `fmscale quickstart life` counted."""
    target = ">= 0.8 more, lower end of the one interval against the upper end of the other"
    if not report.is_file():
        reasons = {"fmscale": f"no {report.relative_to(ROOT)}: run `fmscale quickstart life` first"}
        return Claim(id="F15.steps", what="not measured", unit="", ours=None, target=target, reasons=reasons)
    cells = json.loads(report.read_text())["accuracy"]["sft"]
    direct, steps = cells["direct"], cells["steps"]
    apart = steps["low"] - direct["high"]
    return Claim(
        id="F15.steps", what=f"{steps['n']} unseen problems, step by step {steps['value']:.1%}, and the same weights "
        "asked directly", unit="right answers", ours=steps["value"], peers={"asked directly": direct["value"]},
        ratio=apart, target=target, ok=apart >= 0.8,
        runs=[{"system": way, "value": cell["value"], "interval": [cell["low"], cell["high"]]}
              for way, cell in (("direct", direct), ("steps", steps))],
    )  # fmt: skip
