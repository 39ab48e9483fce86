"""Generation: F9 of `fmscale bench life`, with transformers on the same weights: the same tokens, then their rate.

`python -m benchmarks.life_generate [--quick]` measures it alone. Runs alternate in one process with one thread;
transformers is in fmscale's own environment.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Claim
from benchmarks.life_sft import PEERS
from fmscale.config import ModelConfig
from fmscale.infer import generate
from fmscale.models import Decoder, build
from fmscale.models.hf import hf_config, hf_names

MODEL: dict[str, Any] = {
    "num_layers": 6,
    "dim": 160,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim": 448,
    "tied": True,
}
"""2.4 M parameters with 4,096 tokens."""
VOCAB = 4096
NEW = 96
TARGETS = {"batch1": 1.0, "batch8": None, "batch32": 1.5, "mixed": 2.5}
PAD = 0


def models() -> tuple[Decoder, LlamaForCausalLM]:
    """The same weights on both sides, five times the usual size, so that the likeliest tokens are clear."""
    config = ModelConfig(**MODEL, max_seq_len=512, init_std=0.1)
    ours = build(config, vocab_size=VOCAB)
    ours.init_weights(torch.Generator().manual_seed(0))
    theirs = LlamaForCausalLM(LlamaConfig(**hf_config(config, VOCAB, bos=None, eos=None)))
    names = {hf: name for name, hf in hf_names(config).items()}
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.copy_(weights[names[name]])
    return ours.eval(), theirs.eval()  # type: ignore[no-untyped-call]


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def transformers_generate(
    model: LlamaForCausalLM, texts: list[list[int]], limits: list[int], samples: int
) -> list[list[int]]:
    """Its usual way: prompts padded on the left to one batch, which runs until its last sequence has ended."""
    longest = max(map(len, texts))
    ids = torch.tensor([[PAD] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    ids, mask = (x.repeat_interleave(samples, 0) for x in (ids, mask))
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max(limits), pad_token_id=PAD)
    each = [limit for limit in limits for _ in range(samples)]
    return [row[:limit] for row, limit in zip(out[:, longest:].tolist(), each, strict=True)]


def cases(quick: bool) -> list[tuple[str, list[int], list[int], int]]:
    """Name, lengths of the prompts, new tokens of each, samples."""
    new = 24 if quick else NEW
    found = [(f"batch{n}", [16] * n, [new] * n, 1) for n in (1, 8, 32)]
    lengths = [8 + 56 * i // 7 * (1 + i % 2) for i in range(8)]
    limits = [max(8, new * (1 + i * 3 % 8) // 8) for i in range(8)]
    return [*found, ("mixed", lengths, limits, 8)]


def timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    torch.set_num_threads(1)
    ours, theirs = models()
    claims = []
    for name, lengths, limits, samples in cases(quick):
        texts = prompts(lengths)

        def mine(texts: list[list[int]] = texts, limits: list[int] = limits, n: int = samples) -> list[list[int]]:
            done = generate(ours, texts, max_tokens=limits, samples=n, slots=32, threads=1)
            return [one.tokens for one in done]

        def peer(texts: list[list[int]] = texts, limits: list[int] = limits, n: int = samples) -> list[list[int]]:
            return transformers_generate(theirs, texts, limits, n)

        tokens, sequences = samples * sum(limits), samples * len(texts)
        equal = sum(a == b for a, b in zip(mine(), peer(), strict=True))
        runs: list[dict[str, Any]] = []
        for _ in range(3 if quick else 5):
            for system, work in (("fmscale", mine), ("transformers", peer)):
                seconds, _ = timed(work)
                runs.append({"system": system, "value": tokens / seconds})
        speeds = [
            [each["value"] for each in runs if each["system"] == system] for system in ("fmscale", "transformers")
        ]
        ratio, target = statistics.median(a / b for a, b in zip(*speeds, strict=True)), TARGETS[name]
        of = (
            f"prompts of {min(lengths)} to {max(lengths)} tokens, {min(limits)} to {max(limits)} new, {samples} samples"
        )
        claims.append(
            Claim(
                id=f"F9.{name}", what=f"greedy, 2.4 M parameters, fp32, {len(texts)} {of}; {equal} of {sequences} "
                "sequences equal", unit="tokens/CPU-s", ours=statistics.median(speeds[0]),
                peers={"transformers": statistics.median(speeds[1])}, ratio=ratio,
                target=f">= {target} x transformers, all equal" if target else "all equal",
                ok=ratio >= (target or 0) and equal == sequences, runs=runs,
            )
        )  # fmt: skip
    return [asdict(claim) for claim in claims]


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
