"""Supervised fine-tuning: F1 (speed), F2 (packed equals single, fill) and F19 (memory) of `fmscale bench life`.

`python -m benchmarks.life_sft [--quick]` measures them alone. TRL and transformers run in the peers' environment by
subprocess, on the same weights and documents, interleaved with ours: CPU seconds of the steps after the first, in one
thread. Ours is a whole run of `fmscale train`, in a process of its own.
"""

import importlib
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import ROOT, Claim, run_json

PEERS = ROOT / ".venv-life" / "bin" / "python"
PEER = str(ROOT / "benchmarks" / "peers" / "life_trl_sft.py")
OURS = [sys.executable, "-m", "benchmarks.life_sft"]
SHAPES: Mapping[str, dict[str, Any]] = {
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
              "num_key_value_heads": 6, "vocab_size": 1024, "max_position_embeddings": 2048},
    "smol": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048,
             "tie_word_embeddings": True},
}  # fmt: skip
"""2.2 M parameters, and 2 layers of SmolLM2-135M."""
TOKENS = 2048
"""Tokens of a step: TRL's 4 packed rows of 512."""
SAMPLES = 26
"""Documents of so many tokens, of 77 on average."""
LONG = 1024
CONFIG = """
store: {{url: {store}}}
model: {{kind: init}}
data: {{sequence_length: 512, memory_bytes: 16_777_216, sources: [{{dataset: {dataset}{spec}}}]}}
batch: {batch}
train: {{run: {run}, folder: {folder}, steps: {steps}, log_every: 1, precision: fp32, zero_stage: 0, init: {init}}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: 1.0e-3, betas: [0.9, 0.999], weight_decay: 0}}
checkpoint: {{every: null}}
"""
KINDS = {
    "sft": ("small", "small", f"{{global_batch: {SAMPLES}, forward_tokens: {TOKENS}}}"),
    "full": ("small", "small", f"{{global_batch: {10 * SAMPLES}, forward_tokens: {2 * TOKENS}}}"),
    "pretraining": ("small", "rows", f"{{global_batch: {TOKENS // 512}, micro_batch: {TOKENS // 512}}}"),
    "smol": ("smol", "smol", f"{{global_batch: 1, forward_tokens: {LONG}}}"),
}
"""Model, dataset and batch of our runs."""


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as name:
        folder = Path(name)
        for kind, shape in SHAPES.items():
            run_json([str(peers), PEER, "make", str(folder / kind), json.dumps(shape)], timeout=600)
        run_json([*OURS, "data", name], timeout=600)
        claims = [*speed(folder, peers, quick=quick), exact(folder), *memory(folder, peers, quick=quick)]
    return [asdict(claim) for claim in claims]


def interleaved(systems: Mapping[str, list[str]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Outputs of each system's processes, which run in turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for turn in range(rounds):
        for name, command in systems.items():
            ours = command[: len(OURS)] == OURS
            found[name].append(run_json([*command, str(turn)] if ours else command, timeout=900))
    return found


def speed(folder: Path, peers: Path, *, quick: bool) -> list[Claim]:
    """F1: real tokens a CPU second of ours, of TRL packed and padded, and of our own pretraining at the same shape.
    F2.fill: the share of padding, in these forwards of 2,048 tokens and in steps of several forwards of 4,096.
    """
    steps, rounds = (5, 2) if quick else (9, 5)
    where, trl = str(folder), [str(peers), PEER, "sft", str(folder / "small")]
    found = interleaved(
        {
            "sft": [*OURS, "train", where, "sft", str(steps)],
            "pretraining": [*OURS, "train", where, "pretraining", str(steps)],
            "bfd": [*trl, "bfd", "4", "512", str(steps)],
            "padded": [*trl, "padded", str(SAMPLES), "512", str(steps)],
        },
        rounds,
    )
    rates = {name: [each["tokens"] / each["cpu_seconds"] for each in runs] for name, runs in found.items()}
    claims = []
    for peer, least, what in (
        ("bfd", 2.5, "TRL packed (bfd)"),
        ("padded", 2.0, "TRL padded"),
        ("pretraining", 0.97, "our pretraining"),
    ):
        first = [found[name][0]["losses"][0] for name in ("sft", peer)]
        if abs(first[0] - first[1]) > 0.1:  # other documents of the same untrained model
            raise RuntimeError(f"the first losses of ours and of {what} are of other models: {first}")
        ratio = statistics.median(a / b for a, b in zip(rates["sft"], rates[peer], strict=True))
        claims.append(
            Claim(
                id=f"F1.{peer}", what="real tokens of supervised fine-tuning, 2.2 M parameters, fp32, documents of 77 "
                "tokens on average; median of the ratios of neighbouring runs", unit="tokens/CPU-s",
                ours=statistics.median(rates["sft"]), peers={what: statistics.median(rates[peer])}, ratio=ratio,
                target=f">= {least} x {what}", ok=ratio >= least,
                runs=[{"system": name, "value": value} for name in ("sft", peer) for value in rates[name]],
            )
        )  # fmt: skip
    whole = run_json([*OURS, "train", where, "full", "3", "0"], timeout=900)
    one = statistics.median(each["fill"] for each in found["sft"])  # of 26 documents, which hold 2,002 tokens
    claims += [
        Claim(
            id=f"F2.fill{size}", what=f"share of the forwards' positions that hold tokens; forwards of {size} tokens",
            unit="share", ours=value, ratio=value, target=target, ok=not target or value >= 0.99,
        )
        for size, value, target in ((TOKENS, one, ""), (2 * TOKENS, whole["fill"], ">= 0.99"))
    ]  # fmt: skip
    return claims


def exact(folder: Path) -> Claim:
    """F2: loss and gradients of documents packed into a forward against each alone."""
    found = run_json([*OURS, "exact", str(folder)], timeout=600)
    worst = max(found["loss"], found["gradient"])
    return Claim(
        id="F2.exact", what=f"{SAMPLES} documents in a forward against each alone: loss, and gradient of the weight "
        "that differs most, relative to its norm", unit="relative", ours=worst, ratio=worst, target="<= 1e-6",
        ok=worst <= 1e-6, runs=[{"system": name, "value": value} for name, value in found.items()],
    )  # fmt: skip


def memory(folder: Path, peers: Path, *, quick: bool) -> list[Claim]:
    """F19: peak memory and time of steps at a vocabulary of 49 k, against whole logits and against TRL's chunks."""
    steps = "4" if quick else "7"
    peer = [str(peers), PEER, "sft", str(folder / "smol")]
    found = interleaved(
        {
            "ours": [*OURS, "train", str(folder), "smol", steps],
            "transformers": [*peer, "plain", "1", str(LONG), steps],
            "TRL, loss in chunks": [*peer, "padded", "1", str(LONG), steps],
        },
        1 if quick else 3,
    )
    claims = []
    for key, unit, most in (("peak_bytes", "MB", 0.7), ("cpu_seconds", "CPU s per 1,000 tokens", 1.0)):
        values = {
            name: [each[key] / 1e6 if key == "peak_bytes" else 1000 * each[key] / each["tokens"] for each in runs]
            for name, runs in found.items()
        }
        middle = {name: statistics.median(each) for name, each in values.items()}
        ratio = middle["ours"] / middle["transformers"]
        claims.append(
            Claim(
                id=f"F19.{key}", what="steps of a document of 1,024 tokens, 2 layers of SmolLM2, vocabulary 49,152, "
                "fp32; the whole process", unit=unit, ours=middle.pop("ours"), peers=dict(middle), ratio=ratio,
                target=f"<= {most} x transformers", ok=ratio <= most,
                runs=[{"system": name, "value": value} for name, each in values.items() for value in each],
            )
        )  # fmt: skip
    return claims


def documents(count: int, vocabulary: int, length: int | None = None) -> list[tuple[list[int], list[int]]]:
    """Random documents with their masks: ids of an end token last, 8 to 512 tokens unless all have one length, 77 on
    average, the last two thirds trained.
    """
    rng = random.Random(0)
    found = []
    for _ in range(count):
        size = length or min(512, max(8, int(rng.lognormvariate(4.1, 0.7))))
        ids = [*(rng.randrange(vocabulary - 1) for _ in range(size - 1)), vocabulary - 1]
        found.append((ids, [0] * (size // 3) + [1] * (size - size // 3)))
    return found


def make_data(folder: Path) -> None:
    """A store with the documents as rendered records, and those of `small` as rows of tokens; documents.json of each
    model for TRL.
    """
    from fmscale.store.datasets.dataset import create_or_open
    from fmscale.store.open import open_store
    from fmscale.store.segments.seal import segment_prefix
    from fmscale.store.segments.tokens_writer import TokenSegmentWriter
    from tests.helpers.rendered import rendered, rendered_dataset

    backend = open_store(str(folder / "store"))
    for name, count, length in (("small", 1024, None), ("smol", 16, LONG + 1)):
        chosen = documents(count, SHAPES[name]["vocab_size"], length)
        (folder / name / "documents.json").write_text(json.dumps(chosen))
        texts = [[(ids[: mask.count(0)], ids[mask.count(0) :])] for ids, mask in chosen]
        rendered_dataset(backend, name, [rendered(texts)])
        if name == "small":
            with TokenSegmentWriter(folder / "scratch", dtype="uint16", split="train") as writer:
                for number, (ids, _) in enumerate(chosen):
                    at = number.to_bytes(16, "big")
                    writer.add(np.array(ids, dtype=np.uint16), at, str(number), 0, len(ids))
                seal = writer.finish(backend, segment_prefix("rows", "bench", 0, "train"))
            create_or_open(backend, "rows").append_commit(
                job="bench", segments={"train": [(0, seal)]}, tokenizer=None, dtype="uint16"
            )


def train(folder: Path, kind: str, steps: int, turn: int) -> dict[str, Any]:
    """Train a run in this process: losses, peak of memory, and of the steps after the first real tokens, CPU seconds
    and the share of positions that hold tokens.
    """
    from fmscale.config import load_config
    from fmscale.train.run import run_training

    torch.set_num_threads(1)
    model, dataset, batch = KINDS[kind]
    path = folder / f"{kind}{turn}.yaml"
    path.write_text(
        CONFIG.format(store=folder / "store", dataset=dataset, init=folder / model, batch=batch, run=f"{kind}{turn}",
                      folder=folder / "runs", steps=steps,
                      spec="" if dataset == "rows" else ", spec: {kind: rendered}")
    )  # fmt: skip
    forwards: list[tuple[int, int]] = []
    loop: Any = importlib.import_module("fmscale.train.loop")
    step = loop.train_step

    def counting(engine: Any, inputs: Any, **rest: Any) -> Any:
        forwards.append((sum(int(i.bounds[-1]) for i in inputs), sum(i.weights.numel() for i in inputs)))
        return step(engine, inputs, **rest)

    loop.train_step = counting
    ends, losses, peaks = [], [], []

    def show(record: Mapping[str, Any]) -> None:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # before the run's last save
        ends.append(time.process_time())
        losses.append(record["loss"])

    run_training(load_config(str(path)), show=show, event=lambda record: None)
    real, positions = map(sum, zip(*forwards[1 - steps :], strict=True))
    return {
        "tokens": real,
        "fill": real / positions,
        "cpu_seconds": ends[-1] - ends[0],
        "losses": losses,
        "peak_bytes": peaks[-1],
    }


def difference(folder: Path) -> dict[str, float]:
    """Relative differences of loss and gradients, packed against single documents."""
    from fmscale.models import build, load_weights
    from fmscale.models.hf import open_hf_folder
    from fmscale.objectives import NextToken
    from fmscale.objectives.protocol import Inputs

    torch.set_num_threads(1)
    found = open_hf_folder(folder / "small")
    model, objective = build(found.config, vocab_size=found.config.vocab_size), NextToken()
    load_weights(model, found.read, found.shapes)
    texts = [(torch.tensor(ids), torch.tensor(mask)) for ids, mask in documents(SAMPLES, 1024)]

    def backward(chosen: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        sizes = [len(ids) - 1 for ids, _ in chosen]
        bounds = torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        tensors = {
            "tokens": torch.cat([ids[:-1] for ids, _ in chosen])[None],
            "labels": torch.cat([ids[1:] for ids, _ in chosen])[None],
            "positions": torch.cat([torch.arange(size) for size in sizes])[None],
            "cu_seqlens": bounds,
        }
        weights = torch.cat([mask[1:] for _, mask in chosen])[None].float()
        inputs = Inputs(tensors=tensors, weights=weights, source=torch.zeros(len(sizes)).long(), bounds=bounds)
        loss = objective(model, inputs).sum
        loss.backward()
        return loss.item()

    def gradients() -> list[torch.Tensor]:
        taken = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        model.zero_grad()
        return taken

    packed, of_packed = backward(texts), gradients()
    single, of_single = sum(backward([text]) for text in texts), gradients()
    pairs = zip(of_packed, of_single, strict=True)
    return {
        "loss": abs(packed - single) / single,
        "gradient": max(float((a - b).norm() / b.norm()) for a, b in pairs),
    }


def main() -> None:
    match sys.argv[1:]:
        case ["data", folder]:
            make_data(Path(folder))
            print("{}")
        case ["train", folder, kind, steps, turn]:
            print(json.dumps(train(Path(folder), kind, int(steps), int(turn))))
        case ["exact", folder]:
            print(json.dumps(difference(Path(folder))))
        case words:
            print(json.dumps(run(quick="--quick" in words), indent=2))


if __name__ == "__main__":
    main()
