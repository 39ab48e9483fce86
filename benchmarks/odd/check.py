"""The check: makes the input of cases, ingests it, and compares the dataset with what plain readers find.

Cases with the same arguments are folders of a job. If such a job ends by an error or a signal, its cases run again in
halves, down to the case that ends it.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.odd.bucket import Bucket, bucket
from benchmarks.odd.case import ANY, Case, Print, printed
from benchmarks.odd.ground import Folder, Ground, Prefix
from benchmarks.odd.rows import read_back
from fmscale.errors import FmscaleError

MEGABYTE = 10**6

JOB_SECONDS = 300.0
"""Longest job; the largest case takes 20 s on an idle core."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome of a case."""

    case: Case
    expected: str
    """Documents and reasons, in words."""
    seen: str
    """The same of the job."""
    faults: list[str]
    """Differences; empty for a good case."""
    peak: int
    """Most bytes of the job's writer."""


class Check:
    """A work folder and a store for the jobs of all cases. Close it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.store = work / "store"
        self.jobs = 0
        self._stack = ExitStack()
        self._bucket: Bucket | None = None

    def close(self) -> None:
        """End the S3 server."""
        self._stack.close()

    def run(self, cases: Sequence[Case]) -> Iterator[Verdict]:
        """The verdicts of cases that share a job. If it ends, its halves run again."""
        self.jobs += 1
        ground = self._ground(bool(cases[0].objects))
        for case in cases:
            ground.make(case)
        # A job without any document ends, whatever it passes over.
        control = "control.jsonl" if cases[0].options.get("kind") == "records" else "control.txt"
        ground.put(control, b'{"control": true}')
        dataset = f"d{self.jobs}"
        outcome = outcome_of(self._job(cases[0], ground, dataset))
        if not outcome["error"] or len(cases) == 1:
            yield from self._judged(cases, ground, control, outcome, dataset)
        ground.close()
        if outcome["error"] and len(cases) > 1:
            middle = len(cases) // 2
            yield from self.run(cases[:middle])
            yield from self.run(cases[middle:])

    def _ground(self, remote: bool) -> Ground:
        if not remote:
            return Folder(self.work / f"root-{self.jobs}")
        self._bucket = self._bucket or self._stack.enter_context(bucket(self.work / "s3"))
        return Prefix(self._bucket, f"root-{self.jobs}")

    def _judged(
        self, cases: Sequence[Case], ground: Ground, control: str, outcome: dict[str, Any], dataset: str
    ) -> Iterator[Verdict]:
        found: dict[str, list[Print]] = {case.id: [] for case in cases}
        committed = False
        # A job that ended early has no dataset.
        with suppress(FmscaleError) if outcome["error"] else nullcontext():
            for source, value in read_back(str(self.store), dataset):
                committed = True
                if source != control:
                    case_id, below = place(source, found)
                    found.setdefault(case_id, []).append(printed(below, value))
        expected = {case.id: [] if case.ends else list(ground.documents(case)) for case in cases}
        # The memory is that of the job.
        largest = max(case.largest for case in cases), *(one[2] for prints in expected.values() for one in prints)
        for case in cases:
            yield judge(case, expected[case.id], found.pop(case.id), outcome, committed, max(largest))
        if found:
            raise RuntimeError(f"documents of no case: {found}")

    def _job(self, first: Case, ground: Ground, dataset: str) -> dict[str, Any]:
        job: dict[str, Any] = {
            "paths": [ground.path(f"{first.id}/{path}") for path in first.paths] or [ground.path("")],
            "store": str(self.store),
            "dataset": dataset,
            "options": {"workers": 1, "scratch": str(self.work), **first.options},
        }
        if job["options"].get("kind") != "records":
            job["options"]["tokenizer"] = "bytes"
        if first.change:
            job["change"] = {**first.change, "path": ground.path(f"{first.id}/{first.change['path']}")}
        return job


def outcome_of(job: dict[str, Any]) -> dict[str, Any]:
    """Outcome of a job in a process without root's right to read everything."""
    command = [sys.executable, "-m", "benchmarks.odd.job"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    try:
        done = subprocess.run(
            command, cwd=ROOT, input=json.dumps(job), capture_output=True, text=True, timeout=JOB_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end within {JOB_SECONDS:.0f} s", "peak": 0, "skipped": {}, "guessed": {}}
    if done.returncode:
        return {"error": f"exit {done.returncode}: {done.stderr[-300:]}", "peak": 0, "skipped": {}, "guessed": {}}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def place(source: str, cases: dict[str, Any]) -> tuple[str, str]:
    """The case of a source name and the name below its folder."""
    parts = source.split("/", 2)
    name = "/".join(parts[:2])
    if name in cases and len(parts) == 3:
        return name, parts[2]
    return (next(iter(cases)), source) if len(cases) == 1 else (source, source)


def judge(
    case: Case, expected: list[Print], seen: list[Print], outcome: dict[str, Any], committed: bool, largest: int
) -> Verdict:
    """Compare a case with its outcome. `largest`: bytes of the largest document of the job."""
    left_out = counts(case, outcome["skipped"])
    faults = ending(case, outcome["error"], committed)
    if case.original is not None and not outcome["error"]:
        faults += losses(case, expected, seen, outcome["skipped"])
    elif not case.ends and not outcome["error"]:
        faults += differences(case, expected, seen, left_out)
        named = {format for format, entry in outcome["guessed"].items() if mine(case, entry["first"], outcome)}
        if case.guessed and named != {case.guessed}:
            faults.append(f"guessed {sorted(named) or 'nothing'}, not {case.guessed}")
    most = 250 * MEGABYTE + 4 * largest
    if outcome["peak"] > most:
        faults.append(f"{outcome['peak'] / MEGABYTE:.0f} MB of memory, {most / MEGABYTE:.0f} at most")
    return Verdict(
        case=case,
        expected=case.ends or told(len(expected), case.left_out),
        seen=outcome["error"] or told(len(seen), left_out),
        faults=faults,
        peak=outcome["peak"],
    )


def ending(case: Case, error: str, committed: bool) -> list[str]:
    """Faults in the end of the job."""
    if not case.ends:
        return [f"the job ended: {error}"] if error else []
    if not error:
        return ["the job did not end"]
    wrong = case.ends.lower() not in error.lower() or "without cause" in error
    return ["another error"] * wrong + ["something was committed"] * committed


def differences(case: Case, expected: list[Print], seen: list[Print], left_out: dict[str, int]) -> list[str]:
    """Faults in documents and counts."""
    faults = []
    if seen != expected:
        lost, more = Counter(expected) - Counter(seen), Counter(seen) - Counter(expected)
        words = [
            f"{sum(some.values())} {how}: {first(some)}" for some, how in ((lost, "lost"), (more, "too many")) if some
        ]
        faults.append("; ".join(words) or "another order")
    if "*" in case.left_out:
        return faults + ["nothing was counted"] * (not left_out)
    for reason in sorted({*case.left_out, *left_out}):
        wanted, found = case.left_out.get(reason, 0), left_out.get(reason, 0)
        if found != wanted and not (wanted == ANY and found):
            faults.append(f"{found} {reason}, not {'some' if wanted == ANY else wanted}")
    return faults


def losses(case: Case, expected: list[Print], seen: list[Print], skipped: dict[str, Any]) -> list[str]:
    """Faults in what is left of damaged files."""
    assert case.original is not None, "only such cases come here"
    counted = {name for entry in skipped.values() for name in entry["first"] if name.startswith(f"{case.id}/")}
    faults = []
    for source in case.documents:
        found = [one for one in seen if one[0] == source]
        whole = [printed(source, text) for text in case.original]
        plain = [one for one in expected if one[0] == source]
        # What the plain reader reads may differ from the original: no checksum covers an offset of Arrow.
        truth = iter(plain + whole[len(plain) :])
        wrong = [one for one in found if one not in truth]
        if wrong:
            faults.append(f"a wrong document: {first(Counter(wrong))}")
        lost = len(found) < len(whole) and not any(name.startswith(f"{case.id}/{source}") for name in counted)
        faults += [f"{source}: {len(whole) - len(found)} documents lost in silence"] * lost
    return faults


def counts(case: Case, skipped: dict[str, Any]) -> dict[str, int]:
    """Count of each reason, of names below the case's folder."""
    found = {reason: len(mine(case, entry["first"], {})) for reason, entry in skipped.items()}
    return {reason: count for reason, count in found.items() if count}


def mine(case: Case, names: list[str], _: dict[str, Any]) -> list[str]:
    """The names that are the case's."""
    return names if case.group == case.id else [name for name in names if name.startswith(f"{case.id}/")]


def first(prints: "Counter[Print]") -> str:
    """The first of the documents, in words."""
    source, _, size, begin = next(iter(prints))
    return f"{source!r}, {size} bytes, {begin!r}"


def told(count: int, left_out: Any) -> str:
    """Documents and reasons in words."""
    reasons = [
        f"{'some' if number == ANY else number} {'' if reason == '*' else reason}".strip()
        for reason, number in left_out.items()
    ]
    return ", ".join([f"{count} documents", *sorted(reasons)])
