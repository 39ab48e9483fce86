"""Adapters: F3 (state), F4 (equal to PEFT, time and memory of a step) and F5 (merge) of `fmscale bench life`.

`python -m benchmarks.life_adapters [--quick]` measures them alone. PEFT runs in the peers' environment by subprocess,
on the same base, the same first adapter and the same tokens, interleaved with ours; the losses are compared first.
"""

import json
import resource
import shutil
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
SIZES = {"whole": "2 x 512 tokens", "mixed": "8 documents, 128 tokens in the middle; PEFT pads them"}
KINDS = ("lora", "rslora", "dora")


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as name:
        folder = Path(name)
        run_json([str(peers), PEER, "make", name, json.dumps(SHAPE)], timeout=600)
        claims = [*state(folder / "state", quick=quick), *equal(folder, peers), *steps(folder, peers, quick=quick)]
    return [asdict(claim) for claim in claims]


def state(folder: Path, *, quick: bool) -> list[Claim]:
    """F3: adapters over stages and ranks 3 -> 1 -> 2, each pair of stages once, and resumes to the bit at one size;
    bytes of a save at every stage. The tests' own checks, which raise at a difference.
    """
    from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
    from fmscale.checkpoint.format.piece import elements
    from fmscale.store.open import open_store
    from tests.train import test_adapters as checks
    from tests.train.runs import make_corpus, write_config

    folder.mkdir()
    store = make_corpus(folder)
    checks.go(1, write_config(folder / "base", store), *checks.COMMON, "train.run=base", "train.steps=2")
    moves = [(a, b, (a + b) % 4) for a in range(4) for b in range(4)][:: 5 if quick else 1]
    for number, stages in enumerate(moves):
        place = folder / f"{number}"
        kind, precision = KINDS[number % 3], ("bf16", "fp32")[number % 2]
        sizes = tuple(zip((3, 1, 2), stages, strict=True))
        checks.test_an_adapter_moves_to_any_size_and_stage(_copy(store, place), place, kind, precision, sizes)
    sames = [(size, stage) for size in (1, 2) for stage in range(4)][:: 5 if quick else 1]
    for number, (size, stage) in enumerate(sames):
        place = folder / f"same{number}"
        checks.test_resume_at_the_same_size_is_bit_exact(_copy(store, place), place, size, stage)
    wide = ("model.dim=576", "model.num_heads=9", "model.num_kv_heads=3", "batch.global_batch=2", "train.steps=1")
    path, backend, ratios = write_config(folder / "wide", store), open_store(store), {}
    checks.go(1, path, *checks.COMMON, *wide, "train.run=wide")
    for stage in range(4):
        adapter = ("train.init=wide", "adapter.rank=16", f"train.zero_stage={stage}", f"train.run=wide{stage}")
        checks.go(2, path, *checks.COMMON, *wide, *adapter)
        [entry] = list_checkpoints(backend, f"wide{stage}")
        weights = [tensor for tensor in load_manifest(backend, entry).tensors if tensor.state == "weight"]
        stored = sum(info.bytes for info in backend.list_objects(f"{entry.folder}/"))
        ratios[stage] = stored / (12 * sum(elements(tensor.shape) for tensor in weights))
    worst = max(ratios.values())
    return [
        Claim(id="F3.moves", what="stages and ranks 3 -> 1 -> 2 without a difference", unit="of moves",
              ours=len(moves), target="all equal", ratio=1.0, ok=True),
        Claim(id="F3.resume", what="resumes at one size, equal to the bit", unit="of resumes", ours=len(sames),
              target="all equal", ratio=1.0, ok=True),
        Claim(id="F3.bytes", what="all stored bytes of a save, rank 16, dim 576, 2 ranks, worst of stages 0-3, by 12 "
              "bytes a trainable weight", unit="x", ours=worst, target="<= 1.05", ratio=worst, ok=worst <= 1.05),
    ]  # fmt: skip


def _copy(store: str, folder: Path) -> str:
    return shutil.copytree(store, folder / "store")


def equal(folder: Path, peers: Path) -> list[Claim]:
    """F4.equal: logits of PEFT's adapters here, and of our export in PEFT. F5: logits after a merge, loss in bf16."""
    from safetensors.torch import load_file

    from benchmarks.peers.life_peft import documents
    from fmscale.checkpoint.checkpoint import open_checkpoint
    from fmscale.checkpoint.format.layout import Tensor
    from fmscale.checkpoint.weights import save_weights
    from fmscale.config import as_tree
    from fmscale.infer.adapters import export_peft, import_peft, merge, open_adapter
    from fmscale.infer.load import open_trained
    from fmscale.models.hf import open_hf_folder
    from fmscale.store.datasets.dataset import open_dataset
    from fmscale.store.open import open_store
    from tests.infer.trained_run import store_texts

    url = store_texts(folder / "equal")
    backend, base = open_store(url), open_hf_folder(folder / "base")
    data = {"sequence_length": 64, "sources": [{"dataset": "docs"}]}
    meta = {"config": {"model": as_tree(base.config), "data": data}, "vocab_size": base.config.vocab_size, "step": 0}
    meta["tokenizer"] = open_dataset(backend, "docs").commits()[-1].tokenizer
    save_weights(backend, "base", [Tensor(n, "weight", "float32", s) for n, s in base.shapes.items()], base.read, meta)
    tokens = documents(0, "whole", base.config.vocab_size or 0)[0][None, :64]

    def ours(run: str) -> torch.Tensor:
        trained = open_trained(f"{url}#{run}")
        logits: torch.Tensor = trained.model.head(trained.model(tokens))
        return logits

    def theirs(adapter: Path) -> torch.Tensor:
        out = folder / "logits.safetensors"
        run_json([str(peers), PEER, "logits", str(folder), str(adapter), str(out)], timeout=300)
        return load_file(out)["logits"]

    worst = {"import": 0.0, "export": 0.0, "merge": 0.0}
    lost: dict[str, float] = {}
    for kind in KINDS:
        import_peft(folder / f"{kind}.random", backend, kind, open_checkpoint(f"{url}#base"))
        adapter, there = open_adapter(f"{url}#{kind}"), folder / f"{kind}.ours"
        export_peft(adapter, there, str(folder / "base"))
        merge(adapter, f"merged-{kind}", "float32", backend)
        lost |= merge(adapter, f"half-{kind}", "bfloat16", backend)
        here = ours(kind)
        logits = {"import": theirs(folder / f"{kind}.random"), "export": theirs(there), "merge": ours(f"merged-{kind}")}
        worst = {
            name: max(worst[name], float((other - here).abs().max() / here.abs().max()))
            for name, other in logits.items()
        }
    return [
        Claim(id=f"{'F5' if name == 'merge' else 'F4'}.{name}", unit="largest difference by largest logit", ours=value,
              what=f"{what}: lora, rslora, dora, all linears, fp32", target="<= 1e-5", ratio=value, ok=value <= 1e-5)
        for name, value, what in (
            ("import", worst["import"], "an adapter of PEFT here"),
            ("export", worst["export"], "our export in PEFT"),
            ("merge", worst["merge"], "merged against unmerged"),
        )
    ] + [Claim(id="F5.bf16", what="part of the change that a merge in bf16 loses, mean over layers", unit="share",
               ours=statistics.mean(lost.values()), target="told", ok=True)]  # fmt: skip


def steps(folder: Path, peers: Path, *, quick: bool) -> list[Claim]:
    """F4.time and F4.memory: CPU seconds and memory of a step, medians of interleaved processes."""
    claims = []
    for kind, lengths in (("lora", "mixed"), ("lora", "whole"), ("dora", "mixed")):
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        words = [kind, str(3 if quick else 6), lengths]
        for _ in range(1 if quick else 3):
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
                id=f"F4.{kind}.{lengths}.{measure}",
                what=f"{what}: {kind}, fp32, {SIZES[lengths]}; losses of both within {difference:.0e}",
                unit=unit, ours=mine, peers={"peft": peer}, ratio=mine / peer, target="<= 0.8 x PEFT",
                ok=mine <= 0.8 * peer,
            )  # fmt: skip
            claim.runs = [{"system": "fmscale", "value": each[measure]} for each in ours]
            claim.runs += [{"system": "peft", "value": each[measure]} for each in theirs]
            claims.append(claim)
    return claims


def train(folder: Path, kind: str, count: int, lengths: str) -> dict[str, Any]:
    """Steps of our engine from the same base and adapter: losses, CPU seconds a step after the first, peak in MB."""
    from safetensors.torch import load_file

    from benchmarks.peers.life_peft import BETAS, RATE, documents
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
        data=DataConfig(sources=(SourceConfig(dataset="none"),), sequence_length=512),
        model=base.config,
        adapter=LoraConfig(kind=kind, rank=16, alpha=32),  # type: ignore[arg-type]
        train=TrainConfig(zero_stage=0, precision="fp32"),
        optimizer=OptimizerConfig(lr=RATE, betas=BETAS, clip_norm=1.0),
    )
    batch = BatchShape(global_batch=8, micro_batch=1, accumulation=1, dp_size=1, forward_tokens=4096)
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
        parts = documents(step, lengths, base.config.vocab_size or 0)
        sizes = torch.tensor([len(part) - 1 for part in parts])
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(torch.int32)
        tensors = {"tokens": torch.cat([part[:-1] for part in parts])[None], "cu_seqlens": bounds}
        tensors["labels"] = torch.cat([part[1:] for part in parts])[None]
        tensors["positions"] = torch.cat([torch.arange(size) for size in sizes.tolist()])[None]
        total, source = int(bounds[-1]), torch.zeros(len(parts), dtype=torch.int64)
        inputs = Inputs(tensors=tensors, weights=torch.ones(1, total), source=source, bounds=bounds)
        step_of = {"count": total, "sources": 1, "rate": RATE, "seed": lambda i: None, "fence": lambda: None}
        losses.append(train_step(engine, [inputs], **step_of).loss_sum.item() / total)
    seconds = (time.process_time() - begin) / (count - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"losses": losses, "seconds": seconds, "peak": peak / 1024, "grown": (peak - before) / 1024}


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(json.dumps(train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
