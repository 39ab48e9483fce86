"""Validated tuning: every configuration's numbers are checked before it is timed, in a process of its own.

A configuration whose numbers are wrong, that the compiler refuses, or that takes its process down is
recorded as rejected, with the Triton and ptxas versions: compilers between 3.4 and 3.7 are known to
miscompile some. The result is a table for `kernels/tuned/`.
"""

import contextlib
import importlib
import json
import selectors
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fmscale.kernels.bench.problems import Problem
from fmscale.kernels.dispatch import Config, Entry, Table

from fmscale.errors import KernelError

PATIENCE = 120.0
"""Seconds for one configuration, compilation included; a hanging kernel counts as crashed."""
START_PATIENCE = 300.0
"""Seconds for the worker to import torch; cold and over a network file system that takes minutes."""


class Workshop:
    """Sends requests to a worker process and starts another when it dies."""

    def __init__(self, module: str, patience: float = PATIENCE) -> None:
        self._module, self._patience = module, patience
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None
        return code

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fmscale.kernels.bench.worker", self._module]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._process = process
        ready = self._line(process, START_PATIENCE)
        if ready != "ready\n":
            raise KernelError(
                f"the tuning worker of {self._module} did not start", found=ready or self._stop(),
                remedy="Its error is above.",
            )  # fmt: skip
        return process

    def _line(self, process: subprocess.Popen[str], patience: float) -> str | None:
        """The worker's next line; "" when it ended, None when nothing came in time."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if waiting.select(patience) else None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer; a crash or silence is an answer too: {"ok": False, "reason": ...}."""
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died since: the empty line below says so
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = self._line(process, self._patience)
        if line is None:
            self._stop()
            return {"ok": False, "reason": f"no answer within {self._patience:g} s"}
        if not line:
            process.wait()
            return {"ok": False, "reason": f"crashed: exit status {self._stop()}"}
        return dict(json.loads(line))


def tune(
    module: str, gpu: str, versions: Mapping[str, str | None], say: Callable[[str], None],
    *, patience: float = PATIENCE,
) -> Table:  # fmt: skip
    """Measure every problem of `module.problems()` and return the table for device `gpu`."""
    problems: list[Problem] = importlib.import_module(module).problems()
    entries: list[Entry] = []
    rejected: list[dict[str, Any]] = []
    with Workshop(module, patience) as workshop:
        for index, problem in enumerate(problems):
            best: dict[str, Config] = {}
            for kernel, choices in problem.kernels.items():
                times: list[tuple[float, Config]] = []
                for choice in choices:
                    request = {"problem": index, "kernel": kernel, "config": dict(choice), "configs": best}
                    answer = workshop.ask(request)
                    if answer["ok"]:
                        times.append((answer["milliseconds"], choice))
                        continue
                    say(f"rejected {problem.op} {problem.bucket} {kernel} {dict(choice)}: {answer['reason']}")
                    rejected.append(
                        {
                            "op": problem.op, "bucket": problem.bucket, "kernel": kernel,
                            "config": dict(choice), "reason": answer["reason"],
                            "triton": versions["triton"], "ptxas": versions["ptxas"],
                        }
                    )  # fmt: skip
                if times:
                    best[kernel] = dict(min(times, key=lambda pair: pair[0])[1])
            # a kernel without a valid configuration is never launched again, and its backend not offered
            without = ["triton"] if len(best) < len(problem.kernels) else []
            answer = workshop.ask({"problem": index, "kernel": None, "configs": best, "without": without})
            entry = _entry(problem, best, answer)
            if entry is None:
                say(f"no backend of {problem.op} in {problem.bucket} gave right numbers: {answer}")
                continue
            entries.append(entry)
            say(f"{problem.op} {problem.bucket}: {entry.backend} {dict(entry.milliseconds)} {best}")
    return Table(
        gpu=gpu, triton=str(versions["triton"]), entries=tuple(entries), rejected=tuple(rejected),
        versions={name: str(version) for name, version in versions.items()},
    )  # fmt: skip


def _entry(problem: Problem, best: Mapping[str, Config], answer: Mapping[str, Any]) -> Entry | None:
    if not answer["ok"]:
        return None
    times: dict[str, float] = dict(answer["milliseconds"])
    if not times:
        return None
    return Entry(
        op=problem.op, bucket=problem.bucket, backend=min(times, key=lambda name: times[name]),
        configs=dict(best), milliseconds=times,
    )  # fmt: skip
