"""Serves a run's model to `lm_eval_adapter.py`: JSON lines of requests in, lines of results out."""

import json
import sys
from typing import Any

from fmscale.errors import FmscaleError
from fmscale.infer.likelihoods import loglikelihoods, rolling_windows
from fmscale.infer.load import TrainedModel, open_trained
from fmscale.infer.prompt.complete import complete
from fmscale.infer.prompt.forms import Prompt
from fmscale.infer.sampling import Sampling
from fmscale.infer.tasks.prompts import Question, choice_pairs, first_token

GENERATED = 256
"""New tokens of a reply where the request names none, as in lm-eval."""


def answer(trained: TrainedModel, kind: str, requests: list[Any], threads: int | None) -> list[Any]:
    """Results of requests of one kind."""
    if kind == "loglikelihood":
        pairs = [
            choice_pairs(trained, Prompt(context), Question("request", "", [text], [], 0), "")[0]
            for context, text in requests
        ]
        return [(found.nats, found.greedy) for found in loglikelihoods(trained.model, pairs, threads=threads)]
    if kind == "rolling":
        first, limit = first_token(trained), trained.model.config.max_seq_len
        parts = [rolling_windows(trained.encode(text), first, limit) for (text,) in requests]
        scores = iter(loglikelihoods(trained.model, [pair for part in parts for pair in part], threads=threads))
        return [sum(next(scores).nats for _ in part) for part in parts]
    return [_reply(trained, context, settings, threads) for context, settings in requests]


def _reply(trained: TrainedModel, context: str, settings: dict[str, Any], threads: int | None) -> str:
    most = int(settings.get("max_gen_toks", GENERATED))
    until = settings.get("until") or []
    prompt = trained.encode(context)[-(trained.model.config.max_seq_len - most) :]  # lm-eval cuts from the left
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    stop = [until] if isinstance(until, str) else until
    sampling = Sampling(temperature=temperature)
    return complete(trained, [prompt], max_tokens=most, stop=stop, sampling=sampling, threads=threads)[0][0].text


def main(address: str, threads: str) -> None:
    """Serve until standard input ends."""
    trained = open_trained(address)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            out: dict[str, Any] = {"results": answer(trained, job["kind"], job["requests"], int(threads) or None)}
        except FmscaleError as error:
            out = {"error": str(error)}
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
