"""`fmscale bench train`: cost of the trainer over a bare loop, and of the store over no data.

One process a measurement would drown 3 % in the noise of two shared cores, so each claim's two sides run in
the same process on the same engine, in alternating segments (ABBA), each after a warm-up; a pair is two
neighbouring segments, and the claim is the median of the pairs' ratios.

- T1.overhead: the real loop (data, journal, agreement, seeds, fence) against a hand-written loop over rows on the
device: only forward, backward, step.
- T2.feed: the real loop fed by the store against the same loop fed with a single repeated batch.
- T4.foreign: the real loop with the store, against transformers' Llama with torch's AdamW and against a loop and model
like nanoGPT's, on the same rows: tokens a CPU-second, and the loss of unseen rows at equal CPU-seconds.
- T3.h200: the model of `configs/run/h200.yaml` on a GPU, in a run of minutes; without a GPU there is no figure.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, Claim, run_json, write_results
from benchmarks.train_gpu import TARGET, TIMEOUT

PACKAGES = ["torch", "deepspeed", "numpy", "pyarrow"]
PAIRS = {False: 24, True: 4}
STEPS = {False: 6, True: 2}
"""Steps of a segment."""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all claims; writes benchmarks/results/train.json. Returns the claims as in that file."""
    import sys

    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.train_pairs",
            folder,
            str(PAIRS[quick]),
            str(STEPS[quick]),
        ]
        found = run_json(command, timeout=3000)
    claims = [
        pair_claim(
            "T1.overhead",
            "tokens/s, the trainer against a bare loop on the same engine",
            "bare_loop",
            found["overhead"],
            0.97,
        ),
        pair_claim(
            "T2.feed",
            "tokens/s, fed by the store against synthetic batches",
            "synthetic",
            found["feed"],
            0.99,
        ),
        *foreign_claims(found["foreign"], found["unseen"], found["seconds"], STEPS[quick]),
        gpu_claim(),
    ]
    write_results("train", claims, quick=quick, packages=PACKAGES)
    return [vars(claim) for claim in claims]


def pair_claim(id: str, what: str, peer: str, pairs: list[dict[str, float]], target: float) -> Claim:
    """A claim about the median ratio of pairs {"ours": tokens/s, "other": tokens/s}."""
    ratios = torch.tensor([pair["ours"] / pair["other"] for pair in pairs], dtype=torch.float64)
    ratio = float(ratios.median())
    quartiles = torch.quantile(ratios, torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    return Claim(
        id=id,
        what=what,
        unit="tokens/s",
        ours=float(torch.tensor([pair["ours"] for pair in pairs]).median()),
        peers={peer: float(torch.tensor([pair["other"] for pair in pairs]).median())},
        ratio=ratio,
        target=f">= {target} of {peer}; median of {len(pairs)} pairs, quartiles {quartiles[0]:.3f} to "
        f"{quartiles[1]:.3f}",
        ok=ratio >= target,
        runs=[{"system": name, "value": pair[name]} for pair in pairs for name in ("ours", "other")],
    )


def foreign_claims(
    segments: list[dict[str, tuple[float, float]]], unseen: dict[str, float], seconds: float, steps: int
) -> Iterator[Claim]:
    """T4, of segments {system: (tokens/s, CPU-seconds)} of so many steps, and of each system's loss of unseen rows once
    it had used the CPU-seconds.
    """
    cpu = {name: [segment[name][1] for segment in segments] for name in segments[0]}
    for peer in ("transformers", "nanogpt"):
        ratios = [other / mine for mine, other in zip(cpu["ours"], cpu[peer], strict=True)]
        mine, other = unseen["ours"], unseen[peer]
        yield Claim(
            id=f"T4.{peer}",
            what=f"steps a CPU-second, and the loss of unseen rows after {seconds:.0f} CPU-seconds of training each: "
            f"{mine:.4f} against {other:.4f}",
            unit="steps a CPU-second",
            ours=steps * len(segments) / sum(cpu["ours"]),
            peers={peer: steps * len(segments) / sum(cpu[peer])},
            ratio=statistics.median(ratios),
            target=f">= 1.0 of {peer}, and the loss not above its loss; median of {len(segments)} segments",
            ok=statistics.median(ratios) >= 1.0 and mine <= other,
            runs=[{"system": name, "value": segment[name][0]} for segment in segments for name in ("ours", peer)],
        )


def gpu_claim() -> Claim:
    """T3: the 1.3 B model on one GPU, if there is a GPU."""
    claim = Claim(
        id="T3.h200",
        what="1.3 B, T = 2048, one GPU, the store and checkpoints included",
        unit="tokens/s",
        ours=None,
        peers={"llm-foundry (its published figure per H100)": TARGET},
        target=f">= {TARGET:,.0f}; data stall < 0.5 %; a save < 1 % of the 100 steps between two",
    )
    if not torch.cuda.is_available():
        claim.reasons["fmscale"] = "not measured: there is no CUDA device here"
        return claim
    import sys

    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as folder:
        found = run_json([sys.executable, "-m", "benchmarks.train_gpu", folder], timeout=TIMEOUT)
    claim.ours, claim.runs = found["tokens_per_second"], found["runs"]
    claim.ratio = found["tokens_per_second"] / TARGET
    claim.ok = claim.ratio >= 1 and found["data_stall"] < 0.005 and found["save_share"] < 0.01
    costs = ", ".join(f"{seconds:.2f} s" for seconds in found["save_seconds"])
    claim.what += f"; the saves cost {costs}, data stall {found['data_stall']:.2%}"
    return claim


if __name__ == "__main__":
    print(json.dumps(run(quick=True), indent=1))
    print(Path(__file__).name)
