"""R4.kills: `fmscale ingest`, `fmscale train` alone and `fmscale launch` of two ranks, ended by SIGTERM and SIGKILL at
random moments of an ingest, a start, a step, a save, an evaluation and an end. The same command then goes on.

At the end the dataset equals that of an ingest without kills, and samples, losses and evaluations of the run equal
those of a run without kills, to the bit.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.campaign.growing import differences
from benchmarks.clusters_restart import kill_all, program
from benchmarks.harness import Claim
from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.store.open import open_store
from fmscale.train.compare import compare, read_history

PHASES = ("ingest", "start", "step", "save", "evaluation", "end")
SYSTEMS = {"alone": 1, "torchrun": 2}
SAVE_EVERY, EVALUATE_EVERY = 4, 6
LEG = 12
"""Steps by which the run's end moves on, once the run is complete and kills are left."""
CONFIG = """
store: {{url: {folder}/store}}
data: {{sequence_length: 64, memory_bytes: 8388608, sources: [{{dataset: d}}]}}
model: {{num_layers: 2, dim: 32, num_heads: 2, num_kv_heads: 1, max_seq_len: 64, dropout: 0.1}}
batch: {{global_batch: 8, micro_batch: 2}}
train: {{folder: {folder}/runs, log_every: 1, precision: fp32, device: cpu, record_delivery: true}}
schedule: {{kind: constant}}
checkpoint: {{every: {save}}}
evaluation: {{every: {evaluate}, sets: [{{dataset: d, rows: {rows}}}]}}
"""
EVALUATED_ROWS = 256
"""An evaluation of 0.7 s: many steps, so that a moment drawn within it does not miss it."""
PATIENCE = 180.0
"""Seconds that a start, a step or an end may take on a busy machine."""
SEED = 13

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A signal to send."""

    phase: str
    number: signal.Signals
    system: str
    """Command that gets it; an ingest gets those of both."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Seconds of each phase of a run without kills: a kill's moment is drawn within."""

    start: float
    step: float
    save: float
    evaluation: float
    end: float


def drawn(count: int, chance: random.Random) -> list[Kill]:
    """The kills in their order: phases in equal numbers, each with both signals and both systems."""
    kills = []
    for number in range(count):
        block, place = divmod(number, len(PHASES))
        by, system = (place + block) % 2, (3 * block + place // 2 + block // 2) % 2
        number_sent = (signal.SIGTERM, signal.SIGKILL)[by]
        kills.append(Kill(phase=PHASES[place], number=number_sent, system=list(SYSTEMS)[system]))
    chance.shuffle(kills)
    return kills


def write_corpus(folder: Path) -> Path:
    """240 texts of made-up words, 1.2 MB."""
    chance, source = random.Random(0), folder / "in"
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 6))) for _ in range(400)]
    source.mkdir(parents=True)
    for number in range(240):
        (source / f"{number:03d}.txt").write_text(f"{number} " + " ".join(chance.choices(words, k=1000)))
    return source


def started(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """A command in a session of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)


def end_by(process: "subprocess.Popen[bytes]", number: signal.Signals) -> str:
    """Send SIGKILL to the process and all below it, or SIGTERM to the process alone, and wait; reason of a fault."""
    family = psutil.Process(process.pid).children(recursive=True)
    if number is signal.SIGKILL:
        kill_all(process)
    else:
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            kill_all(process)
            return f"it did not end within {PATIENCE:.0f} s of {number.name}"
    left = psutil.wait_procs(family, timeout=PATIENCE / 4)[1]
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return f"{len(left)} of its processes outlived it" if left else ""


def ingest_command(folder: Path, store: Path) -> list[str]:
    """`fmscale ingest` of the corpus by two writers."""
    words = ["--dataset", "d", "--tokenizer", "bytes", "--heldout", "0.2", "--workers", "2"]
    return [program(), "ingest", str(folder / "in"), "--store", str(store), *words]


def killed_ingests(folder: Path, kills: Sequence[Kill], chance: random.Random) -> Iterator[Record]:
    """End ingests into FOLDER/store, from an empty store again whenever one was complete. FOLDER/reference has the
    dataset without kills.
    """
    write_corpus(folder)
    log, store, reference = folder / "ingest.log", folder / "store", folder / "reference"
    began = time.monotonic()
    assert started(ingest_command(folder, reference), log).wait(PATIENCE) == 0, log.read_text()[-2000:]
    seconds = time.monotonic() - began
    generations = 0
    for kill in kills:
        while True:
            delay = chance.uniform(0, seconds)
            process = started(ingest_command(folder, store), log)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            reason = end_by(process, kill.number) if process.poll() is None else ""
            status = process.returncode
            if status or reason:
                break
            yield from judged_ingest(status, store, reference, log)  # it was complete before the signal
            generations += 1
            store.rename(folder / f"store-{generations}")
        if not reason and status not in (0, -kill.number):
            reason = f"status {status}: {log.read_text()[-400:]}"
        yield row(kill, delay=delay, status=status, reason=reason)
    yield from judged_ingest(started(ingest_command(folder, store), log).wait(PATIENCE), store, reference, log)


def judged_ingest(status: int, store: Path, reference: Path, log: Path) -> Iterator[Record]:
    """A row for an ingest that ended by itself, if it is not as it should be."""
    reason = (
        f"status {status}: {log.read_text()[-400:]}"
        if status
        else ": ".join(filter(None, differences(store, reference, None)))
    )
    if reason:
        yield {"system": "ingest", "signal": "none", "phase": "ingest", "value": 1.0, "reason": reason}


def row(kill: Kill, *, delay: float, status: int, reason: str, **more: Any) -> Record:
    """The record of a kill; `value` is 1.0 for a fault."""
    system = "ingest" if kill.phase == "ingest" else kill.system
    facts = {"delay": round(delay, 4), "status": status, **more, "value": float(bool(reason)), "reason": reason}
    return {"system": system, "signal": kill.number.name, "phase": kill.phase, **facts}


@dataclass(kw_only=True)
class Run:
    """A run that is started again and again."""

    folder: Path
    name: str
    system: str
    goal: int = LEG
    """Steps at which it is complete."""

    @property
    def place(self) -> Path:
        """Folder of its records."""
        return self.folder / "runs" / self.name

    def start(self) -> tuple["subprocess.Popen[bytes]", float]:
        """The command, and the time of its start."""
        ranks = SYSTEMS[self.system]
        verb = ["train"] if ranks == 1 else ["launch", "--procs-per-node", str(ranks)]
        sets = [f"train.run={self.name}", f"train.steps={self.goal}"]
        command = [program(), verb[0], str(self.folder / "run.yaml"), *sets, *verb[1:]]
        return started(command, self.log), time.time()

    @property
    def log(self) -> Path:
        """Output of all starts."""
        return self.folder / f"{self.name}.log"

    def records(self, since: float) -> list[Record]:
        """Metrics since a time."""
        path = self.place / "metrics.jsonl"
        return [one for one in read_jsonl(path) if one["time"] > since] if path.is_file() else []

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        return max((one.step for one in list_checkpoints(open_store(str(self.folder / "store")), self.name)), default=0)

    def finish(self) -> str:
        """Run to the end without a signal; reason of a fault."""
        process, _ = self.start()
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            kill_all(process)
            return f"no end within {PATIENCE:.0f} s"
        complete = not status and json.loads((self.place / "outcome.json").read_text())["complete"]
        return "" if complete else f"status {status}: {self.log.read_text()[-400:]}"


def lengths(run: Run) -> Lengths:
    """Seconds of each phase, of a run's first leg."""
    process, began = run.start()
    assert process.wait(PATIENCE) == 0, run.log.read_text()[-2000:]
    ended, records = time.time(), run.records(began)
    steps = {one["step"]: one for one in records if "event" not in one}

    def shortest(event: str, name: str) -> float:
        # a save that comes while another is written is skipped, and has no time
        return min(float(one[name]) for one in records if one.get("event") == event and name in one)

    return Lengths(
        start=steps[1]["time"] - began,
        step=statistics.median(one["seconds"] for one in steps.values()),
        save=shortest("checkpoint", "durable_seconds"),
        evaluation=shortest("evaluation", "seconds"),
        end=ended - steps[run.goal]["time"],
    )


def moments(phase: str, goal: int, skip: int) -> Callable[[list[int]], int | None]:
    """A function of the steps that a start has recorded: the step behind which the phase runs, once it was taken. An
    evaluation comes before the record of its step, so its moment is that of the record before.
    """
    kinds: dict[str, Callable[[int], bool]] = {
        "start": lambda step: True,
        "step": lambda step: step % SAVE_EVERY != 0 and step % EVALUATE_EVERY != 0,
        "save": lambda step: step % SAVE_EVERY == 0 and step % EVALUATE_EVERY != 0,
        "evaluation": lambda step: step % SAVE_EVERY != 0 and step % EVALUATE_EVERY == 0,
    }
    if phase == "start":
        return lambda steps: 0
    if phase == "end":
        return lambda steps: goal if goal in steps else None
    wanted = kinds[phase]
    if phase == "evaluation":
        return lambda steps: next((step + 1 for step in steps if wanted(step + 1) and step + 1 < goal), None)
    behind = skip if phase == "step" else 0
    return lambda steps: next((step for step in steps[behind:] if wanted(step) and step < goal), None)


def killed_runs(run: Run, kills: Sequence[Kill], times: Lengths, chance: random.Random) -> Iterator[Record]:
    """End the run at each kill's moment, and let it become complete."""
    before = 0
    for kill in kills:
        while True:
            delay = chance.uniform(0, getattr(times, kill.phase)) + times.step * (kill.phase == "evaluation")
            moment = moments(kill.phase, run.goal, chance.randrange(3))
            process, began = run.start()
            step, reason = awaited(run, process, began, moment)
            if step is not None and not reason:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(delay)
            records = run.records(began)
            alive, in_phase = process.poll() is None, within(kill.phase, step, records)
            if alive:
                reason = end_by(process, kill.number) or reason
                records = run.records(began)
            late = not process.returncode and (not alive or kill.number is signal.SIGKILL)
            if reason or not late:
                break
            run.goal += LEG  # it was complete before the signal
        if not alive and not reason:
            reason = f"it cannot go on, status {process.returncode}: {run.log.read_text()[-600:]}"
        resumed = [one["step"] for one in records if one.get("event") == "resumed"]
        if not reason and resumed and resumed[0] < before:
            reason = f"it went on at step {resumed[0]}, step {before} was saved"
        if not reason:
            reason = ended_wrongly(run, kill, process.returncode, records)
        before = run.saved()
        facts = {"step": step, "in_phase": in_phase, "saved": before}
        yield row(kill, delay=delay, status=process.returncode, reason=reason, **facts)


def awaited(
    run: Run, process: "subprocess.Popen[bytes]", began: float, moment: Callable[[list[int]], int | None]
) -> tuple[int | None, str]:
    """Wait for a moment, or for the end; the step of the moment, and the reason of a fault."""
    deadline = time.monotonic() + PATIENCE
    while True:
        step = moment([one["step"] for one in run.records(began) if "event" not in one])
        if step is not None or process.poll() is not None:
            return step, ""
        if time.monotonic() > deadline:
            return None, f"no such moment within {PATIENCE:.0f} s"
        time.sleep(0.005)


def within(phase: str, step: int | None, records: list[Record]) -> bool:
    """True if the records confirm that the phase had not ended: its own record is not there."""
    events = {(one.get("event"), one["step"]) for one in records if "event" in one and "step" in one}
    if phase == "start":
        return not any("event" not in one for one in records)
    ends = {"save": "checkpoint", "evaluation": "evaluation"}
    return phase not in ends or (ends[phase], step) not in events


def ended_wrongly(run: Run, kill: Kill, status: int, records: list[Record]) -> str:
    """Reason why a run's end is not as documented: after SIGTERM it has saved and its status is 0. A start that has
    done nothing yet may end by the signal itself.
    """
    if kill.number is signal.SIGKILL or (status in (-signal.SIGTERM, 128 + signal.SIGTERM) and not records):
        return ""
    if status:
        return f"status {status}: {run.log.read_text()[-600:]}"
    outcome = json.loads((run.place / "outcome.json").read_text())
    stopped = outcome["stop"] in ("SIGTERM", "SIGUSR1") or outcome["complete"]
    return "" if stopped and outcome["saved"] else f"{outcome}"


def kills_of(folder: Path, count: int, seed: int) -> Iterator[Record]:
    """All kills, and a row of fault for a dataset or run that differs in the end."""
    chance = random.Random(seed)
    plan = drawn(count, chance)
    yield from killed_ingests(folder, [kill for kill in plan if kill.phase == "ingest"], chance)
    text = CONFIG.format(folder=folder, save=SAVE_EVERY, evaluate=EVALUATE_EVERY, rows=EVALUATED_ROWS)
    (folder / "run.yaml").write_text(text)
    for system in SYSTEMS:
        kills = [kill for kill in plan if kill.phase != "ingest" and kill.system == system]
        whole = Run(folder=folder, name=f"whole-{system}", system=system)
        killed = Run(folder=folder, name=f"killed-{system}", system=system)
        times = lengths(whole)
        yield from killed_runs(killed, kills, times, chance)
        whole.goal = killed.goal
        reason = killed.finish() or (whole.finish() if whole.goal > LEG else "") or differing(whole, killed)
        if reason:
            yield {"system": system, "signal": "none", "phase": "complete", "value": 1.0, "reason": reason}


def differing(whole: Run, killed: Run) -> str:
    """Reason why the killed run is not equal to the run without kills."""
    found = compare(read_history(whole.place), read_history(killed.place))
    same = found.exact and found.order_hashes is not None and len(set(found.order_hashes)) == 1
    return "" if same and found.steps == killed.goal else f"{found.only}, {found.parts}"


def kill_claims(*, quick: bool) -> list[Claim]:
    """R4.kills."""
    count = 6 if quick else 100
    rows = []
    with tempfile.TemporaryDirectory(prefix="fmscale-kills-") as folder:
        for number, one in enumerate(kills_of(Path(folder), count, SEED)):
            rows.append(one)
            print(number, json.dumps(one), file=sys.stderr, flush=True)
    sent = [one for one in rows if one["signal"] != "none"]
    faults = sum(one["value"] for one in rows)
    parts = Counter((one["phase"], one["signal"]) for one in sent)
    confirmed = Counter(one["phase"] for one in sent if one.get("in_phase", True))
    shown = ", ".join(
        f"{phase} {parts[phase, 'SIGTERM']} + {parts[phase, 'SIGKILL']} ({confirmed[phase]} confirmed)"
        for phase in PHASES
    )
    return [
        Claim(
            id="R4.kills",
            what=f"faults of {len(sent)} ends by SIGTERM + SIGKILL at random moments, seed {SEED}, by phase: {shown}; "
            "each time the same command goes on, to the dataset, samples and losses of a run without kills",
            unit="faults",
            ours=faults,
            ratio=faults,
            target=f"0 of {count}",
            ok=not faults and len(sent) == count,
            runs=rows,
        )
    ]


if __name__ == "__main__":
    for claim in kill_claims(quick="--quick" in sys.argv):
        print(claim.id, claim.ours, claim.what)
