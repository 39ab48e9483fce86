"""lm-eval's tasks on a run of fmscale: `lm_eval.api.model.LM` over a worker in fmscale's own environment.

It is imported where lm-eval is, and needs no fmscale there:

    from lm_eval_adapter import FmscaleRun
    lm_eval.simple_evaluate(FmscaleRun("runs/store#run", python="fmscale/.venv/bin/python"), tasks=["arc_easy"])
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

WORKER = Path(__file__).with_name("lm_eval_worker.py")


class FmscaleRun(LM):  # type: ignore[misc]
    """A run of fmscale as a model of lm-eval."""

    def __init__(self, address: str, *, python: str, threads: int | None = None) -> None:
        """`python` is the interpreter of fmscale's environment."""
        super().__init__()
        self._worker = subprocess.Popen(
            [python, str(WORKER), address, str(threads or 0)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, kind: str, requests: list[Any]) -> Any:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps({"kind": kind, "requests": [list(one.args) for one in requests]}) + "\n")
        self._worker.stdin.flush()
        answer = json.loads(self._worker.stdout.readline() or '{"error": "the worker has ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["results"]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each (context, continuation)."""
        return [(nats, greedy) for nats, greedy in self._ask("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text."""
        return [float(nats) for nats in self._ask("rolling", requests)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Reply to each (context, settings)."""
        return [str(text) for text in self._ask("generate", requests)]
