"""`fmscale bench clusters`: restarts, launchers, faults and many ranks, on this machine.

- R1.restart: seconds from the start command to the next step after a kill (`clusters_restart.py`).
- R2: requests and CPU time of the ranks' store for 512 ranks, and rank 0's work for a save of 70 B
(`clusters_store.py`, `clusters_manifest.py`).
- R5: CPU time of the training thread beside the model, and its waits (`clusters_loop.py`).
- R3.matrix: launchers x ZeRO stages x fresh and resumed give the same order and losses (`clusters_matrix.py`).
- R4.hosts: hosts that are killed, cut off, slow or told otherwise (`clusters_hosts.py`).
- R4.kills: SIGTERM and SIGKILL at random moments; the same command always goes on (`clusters_kills.py`).
"""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Claim, write_results
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Part:
    """Claims that are measured together."""

    module: str
    function: str
    """Function of the module that takes `quick` and returns the claims."""
    id: str
    """First words of the claims' ids."""


PARTS = (
    Part(module="clusters_restart", function="restart_claims", id="R1.restart"),
    Part(module="clusters_store", function="store_claims", id="R2"),
    Part(module="clusters_loop", function="loop_claims", id="R5"),
    Part(module="clusters_matrix", function="matrix_claims", id="R3.matrix"),
    Part(module="clusters_hosts", function="host_claims", id="R4.hosts"),
    Part(module="clusters_kills", function="kill_claims", id="R4.kills"),
)


def run(*, quick: bool = False, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure all claims, or the parts with a claim that a word of `only` names.

    Writes benchmarks/results/clusters.json, or clusters.part.json, which git ignores, for a choice of parts. Returns
    the claims as in that file. Raises ConfigError for a word without a claim.
    """
    claims = [claim for part in choose(only) for claim in measured(part, quick=quick)]
    write_results("clusters", claims, quick=quick, packages=["torch", "deepspeed", "numpy"], part=bool(only))
    return [vars(claim) for claim in claims]


def choose(only: Sequence[str]) -> list[Part]:
    """The parts with a claim that a word names: R4.kills, or R4, or R1.restart.2."""
    for word in only:
        if not any(_named(part, word) for part in PARTS):
            ids = ", ".join(part.id for part in PARTS)
            raise ConfigError("no claim of this benchmark has that name", found=word, remedy=f"One of: {ids}.")
    return [part for part in PARTS if not only or any(_named(part, word) for word in only)]


def _named(part: Part, word: str) -> bool:
    return f"{part.id}.".startswith(f"{word}.") or word.startswith(f"{part.id}.")


def measured(part: Part, *, quick: bool) -> list[Claim]:
    """The part's claims. A failure leaves a claim without a value, with this reason; the other parts go on."""
    began = time.monotonic()
    try:
        made: list[Claim] = getattr(importlib.import_module(f"benchmarks.{part.module}"), part.function)(quick=quick)
    except (RuntimeError, AssertionError) as error:
        made = [Claim(id=part.id, what="not measured", unit="", ours=None, reasons={"fmscale": str(error)})]
    print(f"measured {part.id} in {time.monotonic() - began:.0f} s", flush=True)
    return made
