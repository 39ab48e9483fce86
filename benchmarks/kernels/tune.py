"""Validated tuning: every configuration's numbers are checked before it is timed, in a process of its own.

A configuration whose numbers are wrong, that the compiler refuses, or that takes its process down is
recorded as rejected, with the Triton and ptxas versions: compilers between 3.4 and 3.7 are known to
miscompile some configurations. The result is a table for `kernels/tuned/`.
"""

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmscale.kernels.dispatch import FORMAT_VERSION, TUNED, Config, TunedEntry, TunedTable, read_table

from benchmarks.kernels.problems import Problem
from benchmarks.kernels.serve import resolve
from benchmarks.kernels.workshop import PATIENCE, Workshop
from fmscale.errors import KernelError

SERVICE = "benchmarks.kernels.trial"
COMBINATIONS = 32
"""Settings tried until one gives right numbers; more than the product of any op's kernels."""

Settings = Mapping[str, Config]
Reject = Callable[[str, Mapping[str, Any], str], None]
Ask = Callable[[Settings], dict[str, Any]]


def known_table(folder: Path, gpu: str, triton: str) -> TunedTable | None:
    """Table in `folder` for this device and Triton version. A file of another format is ignored."""
    for path in sorted(folder.glob(f"*.triton-{triton}.json")):
        with contextlib.suppress(KernelError):
            table = read_table(path)
            if (table.gpu, table.triton) == (gpu, triton):
                return table
    return None


def tune(
    problems: str, gpu: str, versions: Mapping[str, str | None], say: Callable[[str], None],
    *, save: Callable[[TunedTable], object] = lambda _: None, patience: float = PATIENCE,
    known: TunedTable | None = None, again: bool = False, only: str = "", seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> TunedTable:  # fmt: skip
    """Measure the problems that "module:function" `problems` returns; the table for device `gpu`.

    `save` gets the table after each problem, so that an interrupted run keeps its measurements. The table
    begins with the entries of `known`; only `again` measures them once more. `only` is a regular expression
    of "op bucket". After `seconds` of `clock` no other problem begins.
    """
    entries = {(entry.op, entry.bucket): entry for entry in known.entries} if known is not None else {}
    rejected = [dict(one) for one in known.rejected] if known is not None else []
    until = clock() + seconds
    named = [
        (index, problem)
        for index, problem in enumerate(resolve(problems))
        if re.search(only, f"{problem.op} {problem.bucket}")
    ]
    wanted = [pair for pair in named if again or (pair[1].op, pair[1].bucket) not in entries]
    if not named:
        say(f"no op and case has {only!r}")
    elif not wanted:
        say("nothing to tune: all that was asked for is in the table (--again measures it once more)")

    def table() -> TunedTable:
        return TunedTable(
            gpu=gpu, triton=str(versions["triton"]), entries=tuple(entries.values()), rejected=tuple(rejected),
            versions={name: str(version) for name, version in versions.items()},
        )  # fmt: skip

    with Workshop(SERVICE, problems, patience) as workshop:
        for done, (index, problem) in enumerate(wanted):
            if clock() >= until:
                left = f"{len(wanted) - done} of {len(wanted)} problems left"
                say(f"{left} after {seconds:.0f} s: the same command goes on")
                break
            fresh: list[dict[str, Any]] = []

            def reject(
                kernel: str, config: Mapping[str, Any], reason: str, problem: Problem = problem,
                fresh: list[dict[str, Any]] = fresh,
            ) -> None:  # fmt: skip
                say(f"rejected {problem.op}, {problem.bucket}: {kernel} {dict(config)}: {reason}")
                fresh.append(
                    {
                        "op": problem.op, "bucket": problem.bucket, "kernel": kernel,
                        "config": dict(config), "reason": reason,
                        "triton": versions["triton"], "ptxas": versions["ptxas"],
                    }
                )  # fmt: skip

            def ask(settings: Settings, index: int = index) -> dict[str, Any]:
                return workshop.ask({"problem": index, "configs": dict(settings)})

            opened = workshop.ask({"problem": index})
            if not opened["ok"]:
                say(f"{problem.op}, {problem.bucket} is not tuned: {opened['reason']}")
                continue
            best = _descend(problem, ask, reject)
            entry = _choose(workshop, index, problem, best, say)
            case = (problem.op, problem.bucket)
            entries.pop(case, None)
            rejected = [one for one in rejected if (one["op"], one["bucket"]) != case] + fresh
            if entry is not None:
                entries[case] = entry
                say(f"{problem.op}, {problem.bucket}: {entry.backend} {dict(entry.milliseconds)} {best}")
            save(table())
    return table()


def _descend(problem: Problem, ask: Ask, reject: Reject) -> dict[str, Config] | None:
    """The fastest setting, one kernel after the other, from the first whose numbers are right.

    A wrong result blames a kernel's configuration only if all other kernels are known to be right: a
    default configuration may be miscompiled too.
    """
    failed: list[tuple[dict[str, Config], str]] = []
    for choice in itertools.islice(itertools.product(*problem.kernels.values()), COMBINATIONS):
        settings = dict(zip(problem.kernels, choice, strict=True))
        answer = ask(settings)
        if answer["ok"]:
            break
        failed.append((settings, answer["reason"]))
    else:
        for wrong, reason in failed:
            # an op with one kernel blames its configuration; with several kernels the culprit stays unknown
            kernel = " with ".join(wrong)
            reject(kernel, next(iter(wrong.values())) if len(wrong) == 1 else wrong, reason)
        return None
    fastest: float = answer["milliseconds"]
    for kernel, choices in problem.kernels.items():
        right = settings[kernel]
        for candidate in choices:
            if candidate == right:
                continue
            answer = ask(settings | {kernel: candidate})
            if not answer["ok"]:
                reject(kernel, candidate, answer["reason"])
            elif answer["milliseconds"] < fastest:
                fastest, settings = answer["milliseconds"], settings | {kernel: candidate}
    return {kernel: dict(config) for kernel, config in settings.items()}


def _choose(
    workshop: Workshop, index: int, problem: Problem, best: dict[str, Config] | None,
    say: Callable[[str], None],
) -> TunedEntry | None:  # fmt: skip
    """The fastest backend of all whose numbers are right; None where there is none."""
    # a kernel without a valid configuration is never launched again, and its backend is not a candidate
    without = ["triton"] if best is None else []
    times: dict[str, float] = {}
    while True:
        answer = workshop.ask({"problem": index, "configs": best or {}, "without": without})
        if answer["ok"]:
            times = dict(answer["milliseconds"])
            reasons = dict(answer["reasons"])
            break
        say(f"{problem.op}, {problem.bucket}: {answer['trying']}: {answer['reason']}")
        if answer["trying"] is None or answer["trying"] in without:
            return None
        without.append(answer["trying"])
    for name, reason in reasons.items():
        say(f"{problem.op}, {problem.bucket}: backend {name}: {reason}")
    if not times:
        return None
    return TunedEntry(
        op=problem.op, bucket=problem.bucket, backend=min(times, key=lambda name: times[name]),
        configs=best or {}, milliseconds=times,
    )  # fmt: skip


def write_table(table: TunedTable, folder: Path = TUNED) -> Path:
    """Write `table` as `<gpu>.triton-<version>.json` in `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = "".join(c if c.isalnum() else "-" for c in table.gpu.lower())
    path = folder / f"{slug}.triton-{table.triton}.json"
    raw = {
        "format_version": FORMAT_VERSION,
        "gpu": table.gpu,
        "triton": table.triton,
        "versions": dict(table.versions),
        "entries": [vars(entry) for entry in table.entries],
        "rejected": list(table.rejected),
    }
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(raw, indent=1) + "\n")
    scratch.replace(path)
    return path
