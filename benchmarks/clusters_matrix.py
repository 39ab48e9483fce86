"""R3.matrix: a config trained by each launcher at each ZeRO stage, from its begin, and resumed in the middle of a run
that was begun at another size and stage.

Each cell is a start of `fmscale train` or `fmscale launch` by itself. Its samples and order must equal those of all
cells. Its losses must equal those of another start at the same size and stage to the bit, and those of all others
within 1e-5.
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import Claim
from fmscale.train.compare import compare, read_history
from tests.helpers import slurm
from tests.helpers.s3_server import free_ports
from tests.helpers.slurm import Slurm
from tests.launch.training import FMSCALE, copied, environment, prepare, started

LAUNCHERS = ("alone", "torchrun", "deepspeed", "srun", "mpirun")
STAGES = (0, 1, 2, 3)
Kind = Literal["fresh", "resumed"]
KINDS: tuple[Kind, ...] = ("fresh", "resumed")
STEPS, HALF = 6, 3
OTHER_SIZE = 1e-5
"""Relative difference of losses between one rank and two: fp32 sums in other groups differ by 1e-7 a step."""
SEED = 13


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A start of the table."""

    launcher: str
    stage: int
    kind: Kind

    @property
    def size(self) -> int:
        """Ranks of the start."""
        return 1 if self.launcher == "alone" else 2

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.launcher}-{self.stage}-{self.kind}"


@dataclass(kw_only=True)
class Matrix:
    """The runs so far, in folders of their own: a run can be begun once and resumed by several launchers."""

    work: Path
    cluster: Mapping[str, str]
    """Variables of a Slurm of two nodes; empty without a Slurm."""
    reasons: dict[str, str]
    """Reason why a launcher cannot start here."""
    begun: dict[tuple[int, int], Path] = field(default_factory=dict)
    """Folder of a run that took half of its steps, by size and stage."""
    whole: dict[tuple[int, int], Path] = field(default_factory=dict)
    """Folder of a whole run by torchrun, by size and stage."""

    def folder(self, name: str, source: Path | None = None) -> Path:
        """A copy of the prepared folder, or of `source`."""
        return copied(source or self.work / "prepared", self.work / name)

    def start(self, place: Path, launcher: str, size: int, stage: int, steps: int = STEPS) -> None:
        """Train the run `run` of a folder to its end. Raises AssertionError with the output for a failure."""
        sets = [f"train.zero_stage={stage}", f"train.steps={steps}", "schedule.kind=constant", "checkpoint.every=2"]
        if launcher == "alone":
            started([FMSCALE, "train", "run.yaml", *sets], place)
            return
        nodes = ["--nodes", str(size), "--procs-per-node", "1"] if launcher == "srun" else []
        options = nodes or ["--procs-per-node", str(size)]
        if launcher in ("deepspeed", "mpirun"):
            options += ["--master-port", str(free_ports(1)[0])]
        more = self.cluster if launcher == "srun" else {}
        started([FMSCALE, "launch", "run.yaml", *sets, "--with", launcher, *options], place, **more)

    def half(self, size: int, stage: int) -> Path:
        """Folder of a run begun alone or by torchrun."""
        if (size, stage) not in self.begun:
            place = self.begun[size, stage] = self.folder(f"begun-{size}-{stage}")
            self.start(place, "alone" if size == 1 else "torchrun", size, stage, HALF)
        return self.begun[size, stage]

    def reference(self, size: int, stage: int) -> Path:
        """Folder of a whole run by torchrun."""
        if (size, stage) not in self.whole:
            place = self.whole[size, stage] = self.folder(f"whole-{size}-{stage}")
            self.start(place, "torchrun", size, stage)
        return self.whole[size, stage]

    def judged(self, cell: Cell) -> dict[str, Any]:
        """The row of a cell; `value` is 1.0 if it is equal, 0.0 if it differs, None if it did not run."""
        row: dict[str, Any] = {"system": cell.launcher, "stage": cell.stage, "kind": cell.kind, "ranks": cell.size}
        if reason := self.reasons.get(cell.launcher, ""):
            return {**row, "value": None, "reason": f"not run: {reason}"}
        if cell.kind == "resumed":
            size, stage = 3 - cell.size, (cell.stage + 1) % len(STAGES)
            row |= {"begun_ranks": size, "begun_stage": stage}
        try:
            place = self.folder(cell.name, self.half(size, stage) if cell.kind == "resumed" else None)
            self.start(place, cell.launcher, cell.size, cell.stage)
            return {**row, **self.compared(cell, place / "runs" / "run")}
        except AssertionError as error:
            return {**row, "value": 0.0, "reason": f"failed: {str(error)[-600:]}"}

    def compared(self, cell: Cell, run: Path) -> dict[str, Any]:
        """The run beside that of two ranks at stage 0, and a fresh run beside that of its size and stage."""
        outcome = json.loads((run / "outcome.json").read_text())
        history = read_history(run)
        wide = compare(read_history(self.reference(2, 0) / "runs" / "run"), history, tolerance=OTHER_SIZE)
        found: dict[str, Any] = {
            "first_step": outcome["first_step"],
            "order": wide.order_hashes and wide.order_hashes[1],
            "same_order": wide.order_hashes is not None and len(set(wide.order_hashes)) == 1,
            "largest_difference": wide.largest,
            "bits": None,
        }
        right = outcome["complete"] and outcome["world_size"] == cell.size
        right = right and outcome["first_step"] == (HALF if cell.kind == "resumed" else 0)
        right = right and wide.same and wide.steps == STEPS and found["same_order"]
        if cell.kind == "fresh":
            twin = compare(read_history(self.reference(cell.size, cell.stage) / "runs" / "run"), history)
            found["bits"] = twin.exact
            right = right and twin.exact
        reason = "" if right else f"{outcome}, {wide.only}, {wide.parts}"
        return {**found, "value": float(right), "reason": reason}


@contextmanager
def matrix() -> Iterator[Matrix]:
    """A matrix without runs, with the launchers that this machine has."""
    with tempfile.TemporaryDirectory(prefix="fmscale-matrix-") as folder, ExitStack() as stack:
        work, reasons, cluster = Path(folder), {}, {}
        (work / "prepared").mkdir()
        prepare(work / "prepared")
        if reason := slurm.missing():
            reasons["srun"] = reason
        else:
            try:
                cluster = stack.enter_context(Slurm(2)).environment
            except RuntimeError as error:
                reasons["srun"] = str(error)[-600:]
        if shutil.which("mpirun", path=environment()["PATH"]) is None:
            reasons["mpirun"] = "needs mpirun: pip install mpich, or apt-get install openmpi-bin"
        yield Matrix(work=work, cluster=cluster, reasons=reasons)


def drawn() -> list[Cell]:
    """A cell a launcher: each launcher at another stage but one, both kinds in turn."""
    chance = random.Random(SEED)
    stages = chance.sample((*STAGES, *STAGES[:1]), len(LAUNCHERS))
    return [
        Cell(launcher=launcher, stage=stage, kind=KINDS[number % 2])
        for number, (launcher, stage) in enumerate(zip(LAUNCHERS, stages, strict=True))
    ]


def matrix_claims(*, quick: bool) -> list[Claim]:
    """R3.matrix."""
    whole = [Cell(launcher=la, stage=stage, kind=kind) for la in LAUNCHERS for stage in STAGES for kind in KINDS]
    cells = drawn() if quick else whole
    runs = []
    with matrix() as table:
        for cell in cells:
            runs.append(table.judged(cell))
            print(cell.name, runs[-1]["value"], runs[-1].get("reason", ""), file=sys.stderr, flush=True)
    equal = sum(run["value"] == 1.0 for run in runs)
    absent = {run["system"]: run["reason"] for run in runs if run["value"] is None}
    return [
        Claim(
            id="R3.matrix",
            what=f"cells of {len(cells)} with the same order, the same losses to the bit at one size and stage and "
            f"within {OTHER_SIZE} at another: {', '.join(LAUNCHERS)}, ZeRO 0 to 3, fresh and resumed"
            + (f"; {sum(run['value'] is None for run in runs)} did not run" if absent else ""),
            unit="cells",
            ours=float(equal),
            ratio=equal / len(cells),
            target=f"all {len(cells)}",
            ok=equal == len(cells),
            reasons=absent,
            runs=runs,
        )
    ]


if __name__ == "__main__":
    for claim in matrix_claims(quick="--quick" in sys.argv):
        print(claim.id, claim.ours, claim.what)
