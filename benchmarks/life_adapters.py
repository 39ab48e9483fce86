"""Adapters: F3 (state), F4 (equal to PEFT, time and memory of a step) and F5 (merge) of `fmscale bench life`.

`python -m benchmarks.life_adapters [--quick]` measures them alone. PEFT runs in the peers' environment by subprocess,
on the same base, the same first adapter and the same tokens, interleaved with ours; the losses are compared first.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, Claim, run_json

PEERS = ROOT / ".venv-life" / "bin" / "python"
PEER = str(ROOT / "benchmarks" / "peers" / "life_peft.py")
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9} | {
    "num_key_value_heads": 3, "vocab_size": 16384, "tie_word_embeddings": True}  # fmt: skip
"""SmolLM2-135M's blocks, a fifth of them, and a third of its vocabulary."""
ROWS, T = 2, 512
KINDS = ("lora", "rslora", "dora")


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as name:
        folder = Path(name)
        run_json([str(peers), PEER, "make", name, json.dumps(SHAPE)], timeout=600)
        claims = [*state(folder / "state", quick=quick), *equal(folder, peers), *steps(folder, peers, quick=quick)]
    return [asdict(claim) for claim in claims]


def steps(folder: Path, peers: Path, *, quick: bool) -> list[Claim]:
    """F4.time and F4.memory: CPU seconds and memory of a step, medians of interleaved processes."""
    claims = []
    for kind in ("lora", "dora"):
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        words = [kind, str(3 if quick else 6), str(ROWS), str(T)]
        for _ in range(1 if quick else 5):
            theirs.append(run_json([str(peers), PEER, "train", str(folder), *words], timeout=900))
            ours.append(run_json([sys.executable, "-m", "benchmarks.life_adapters", str(folder), *words], timeout=900))
        difference = max(abs(a - b) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True))
        assert difference < 1e-4, (ours[0]["losses"], theirs[0]["losses"])
        for measure, unit, what in (
            ("seconds", "CPU s", "CPU seconds of a step, one thread"),
            ("peak", "MB", "peak memory of the process"),
            ("grown", "MB", "peak memory beyond the imported libraries"),
        ):
            mine, peer = (statistics.median(each[measure] for each in side) for side in (ours, theirs))
            claim = Claim(
                id=f"F4.{kind}.{measure}",
                what=f"{what}: {kind}, fp32, {ROWS} x {T} tokens; losses of both within {difference:.0e}",
                unit=unit, ours=mine, peers={"peft": peer}, ratio=mine / peer, target="<= 0.8 x PEFT",
                ok=mine <= 0.8 * peer,
                runs=[{"system": s, "value": each[measure]} for s, side in (("fmscale", ours), ("peft", theirs)) for each in side],
            )  # fmt: skip
            claims.append(claim)
    return claims


def train(folder: Path, kind: str, count: int, rows: int, length: int) -> dict[str, Any]:
    """Steps of our engine from the same base and adapter: losses, CPU seconds a step after the first, peak in MB."""
    from safetensors.torch import load_file

    from benchmarks.peers.life_peft import BETAS, RATE
    from benchmarks.peers.life_peft import rows as tokens_of
    from fmscale.config import BatchShape, Config, LoraConfig, OptimizerConfig, TrainConfig
    from fmscale.config.data import DataConfig, SourceConfig
    from fmscale.models.hf import open_hf_folder
    from fmscale.models.peft import peft_names
    from fmscale.objectives.protocol import Inputs
    from fmscale.runtime.axes import Axis
    from fmscale.train.engine.accelerator import import_deepspeed
    from fmscale.train.engine.module import build_engine
    from fmscale.train.step import train_step

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    import_deepspeed("cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = open_hf_folder(folder / "base")
    config = Config(
        data=DataConfig(sources=(SourceConfig(dataset="none"),), sequence_length=length),
        model=base.config,
        adapter=LoraConfig(kind=kind, rank=16, alpha=32),  # type: ignore[arg-type]
        train=TrainConfig(zero_stage=0, precision="fp32"),
        optimizer=OptimizerConfig(lr=RATE, betas=BETAS, clip_norm=1.0),
    )
    batch = BatchShape(global_batch=rows, micro_batch=rows, accumulation=1, dp_size=1)
    engine = build_engine(config, Axis(rank=0, size=1), base.config.vocab_size, batch, "cpu")
    first = load_file(folder / kind / "adapter_model.safetensors")
    targets = [name.rpartition(".")[0] for name in (piece.name for piece in engine.pieces(save=False))]
    names = peft_names(base.config, dict.fromkeys(targets), kind)
    for piece in engine.base_pieces():
        piece.tensor.copy_(base.read(piece.name).view(-1))
    for piece in engine.pieces(save=False):
        if piece.state == "weight" and not piece.name.endswith("magnitude"):  # whose change begins at 0
            piece.tensor.copy_(first[names[piece.name]].view(-1))
    engine.restored(0)
    losses, begin = [], 0.0
    for step in range(count):
        begin = time.process_time() if step == 1 else begin
        tokens = tokens_of(step, rows, length, base.config.vocab_size or 0)
        tensors = {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
        tensors["positions"] = torch.arange(length).expand(rows, -1).contiguous()
        bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
        inputs = Inputs(
            tensors={**tensors, "cu_seqlens": bounds},
            weights=torch.ones(rows, length),
            source=torch.zeros(rows, dtype=torch.int64),
            bounds=bounds,
        )
        result = train_step(
            engine, [inputs], count=rows * length, sources=1, rate=RATE, seed=lambda i: None, fence=lambda: None
        )
        losses.append(result.loss_sum.item() / (rows * length))
    seconds = (time.process_time() - begin) / (count - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"losses": losses, "seconds": seconds, "peak": peak / 1024, "grown": (peak - before) / 1024}


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(json.dumps(train(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
