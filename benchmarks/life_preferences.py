"""Preferences: F6 (speed of DPO, a second run), F7 (losses) and F8 (a reward model) of `fmscale bench life`.

`python -m benchmarks.life_preferences [--quick]` measures them alone. TRL runs in the peers' environment by subprocess,
on the same base and pairs, interleaved with ours: CPU seconds of a step, one thread.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import ROOT, Claim, run_json

PEERS = ROOT / ".venv-life" / "bin" / "python"
PEER = str(ROOT / "benchmarks" / "peers" / "life_trl.py")
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4} | {
    "num_key_value_heads": 4, "vocab_size": 2048, "tie_word_embeddings": False}  # fmt: skip
"""2.6 M parameters."""
PAIRS = 8
"""Pairs of a step."""
COUNT = 256
CONFIG = """
store: {{url: {store}}}
data: {{sources: [{{dataset: {dataset}}}], spec: {{kind: rendered}}}}
batch: {{global_batch: {pairs}, forward_tokens: 4096}}
train: {{run: {run}, folder: {folder}, steps: {steps}, log_every: 1, precision: fp32, zero_stage: 0, init: base@1}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: {rate}, betas: [0.9, 0.999], weight_decay: 0}}
checkpoint: {{every: null}}
"""


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as name:
        run_json([str(peers), PEER, "make", name, json.dumps(SHAPE), str(COUNT)], timeout=600)
        run_json([sys.executable, "-m", "benchmarks.life_preferences", "base", name], timeout=600)
        claims = [*dpo(Path(name), peers, quick=quick), losses(), rankings(Path(name), quick=quick)]
    return [asdict(claim) for claim in claims]


def dpo(folder: Path, peers: Path, *, quick: bool) -> list[Claim]:
    """F6: pairs a CPU second with a reference column, and with a second model, against TRL's two ways."""
    steps, rounds = (4, 2) if quick else (12, 4)  # the second has the first one's column
    systems: Mapping[str, list[str]] = {
        "column": [sys.executable, "-m", "benchmarks.life_preferences", "dpo"],
        "model": [sys.executable, "-m", "benchmarks.life_preferences", "dpo"],
        "precomputed": [str(peers), PEER, "dpo"],
        "online": [str(peers), PEER, "dpo"],
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for turn in range(rounds):
        for name, command in systems.items():
            words = [*command, str(folder), name, str(steps), str(PAIRS)]
            found[name].append(run_json([*words, str(turn)] if name in ("column", "model") else words, timeout=900))
    for name, runs in found.items():
        assert abs(runs[0]["losses"][0] - np.log(2)) < 1e-4, (name, runs[0]["losses"])
    speed = {name: [PAIRS / statistics.median(each["steps"]) for each in runs] for name, runs in found.items()}
    middle = {name: statistics.median(values) for name, values in speed.items()}
    claims = []
    for ours, peer, least in (("column", "precomputed", 1.5), ("column", "online", 2.0), ("model", "online", 1.5)):
        ratio = middle[ours] / middle[peer]
        claims.append(
            Claim(
                id=f"F6.{ours}.{peer}",
                what=f"DPO, 2.6 M parameters, fp32, {PAIRS} pairs a step: reference as a {ours}, TRL {peer}",
                unit="pairs/CPU-s",
                ours=middle[ours],
                peers={f"trl {peer}": middle[peer]},
                ratio=ratio,
                target=f">= {least} x TRL {peer}",
                ok=ratio >= least,
                runs=[{"system": name, "value": value} for name in (ours, peer) for value in speed[name]],
            )
        )
    second = found["column"][-1]["reference_forwards"]
    before = statistics.median(each["before"] for each in found["precomputed"])
    claims.append(
        Claim(
            id="F6.second",
            what="forwards of the reference in a second run; TRL prepares each run anew",
            unit="forwards",
            ours=second,
            peers={"trl precomputed, CPU-s before the first step": before},
            ratio=second,
            target="0",
            ok=second == 0,
        )
    )
    return claims


def losses() -> Claim:
    """F7: losses of pairs through our model, packed forward and objective, against TRL's trainers on the same weights
    and tokens, whose values are a fixture (tests/fixtures/make_preferences.py).
    """
    from fmscale.config.objective import DpoConfig, IpoConfig, KtoConfig, OrpoConfig, RewardConfig, SimpoConfig
    from tests.objectives.test_trl import GOLDEN, loss_of

    made: dict[str, tuple[float, float]] = {}
    for case in GOLDEN["dpo"]:
        kind, smoothing = case["loss"], case["label_smoothing"]
        config: Any = IpoConfig() if kind == "ipo" else DpoConfig(per="token") if kind == "sigmoid_norm" else None
        config = config or DpoConfig(loss=kind, label_smoothing=smoothing)
        made[f"{kind}, smoothing {smoothing:g}"] = loss_of(config), case["value"]
    z = torch.tensor(GOLDEN["kto"]["z"])
    made["kto"] = loss_of(KtoConfig(), "reference", z), GOLDEN["kto"]["value"]
    for name, plain in (("simpo", SimpoConfig()), ("orpo", OrpoConfig()), ("reward", RewardConfig())):
        made[name] = loss_of(plain), GOLDEN[name]
    runs: list[dict[str, Any]] = [
        {"system": name, "value": abs(ours - theirs) / abs(theirs)} for name, (ours, theirs) in made.items()
    ]
    worst = max(float(run["value"]) for run in runs)
    return Claim(
        id="F7.losses", what=f"{len(runs)} losses of pairs against TRL 1.16's on the same weights: largest difference",
        unit="relative", ours=worst, ratio=worst, target="<= 1e-6", ok=worst <= 1e-6, runs=runs,
    )  # fmt: skip


def rankings(folder: Path, *, quick: bool) -> Claim:
    """F8: pairs in the right order of held-out rankings of 4 texts, ordered by the share of small tokens."""
    found = run_json(
        [sys.executable, "-m", "benchmarks.life_preferences", "reward", str(folder), str(int(quick))], timeout=900
    )
    return Claim(
        id="F8.accuracy", what=f"reward model, {found['steps']} steps; {found['rankings']} held-out rankings of 4",
        unit="share of pairs", ours=found["accuracy"], ratio=found["accuracy"], target=">= 0.95",
        ok=found["accuracy"] >= 0.95, runs=[{"system": "fmscale", "value": found["accuracy"]}],
    )  # fmt: skip


def make_base(folder: Path) -> None:
    """A store with TRL's base as run `base`, the pairs, and rankings; the column of log-probs is a job's."""
    from fmscale.checkpoint.format.names import run_log
    from fmscale.checkpoint.format.piece import whole
    from fmscale.checkpoint.saver import Saver
    from fmscale.config import CheckpointConfig, as_tree
    from fmscale.models import build, load_weights
    from fmscale.models.hf import open_hf_folder
    from fmscale.runtime.world import World
    from fmscale.store.log.lease import acquire
    from fmscale.store.open import open_store
    from tests.helpers.rendered import rendered, rendered_dataset

    url, base = str(folder / "store"), open_hf_folder(folder / "base")
    backend = open_store(url)
    model = build(base.config, vocab_size=base.config.vocab_size)
    load_weights(model, base.read, base.shapes)
    lease = acquire(run_log(backend, "base"), "benchmark")
    saver = Saver(url, "base", world=World(), lease=lease.number, config=CheckpointConfig())
    meta = {
        "step": 1,
        "vocab_size": base.config.vocab_size,
        "tokenizer": None,
        "config": {"model": as_tree(base.config)},
    }
    saver.save(1, [whole(name, parameter) for name, parameter in model.named_parameters()], meta, wait=True)
    saver.close(60.0)
    (folder / "model.json").write_text(json.dumps(as_tree(base.config)))
    pairs = [[(p, chosen), (p, rejected)] for p, chosen, rejected in json.loads((folder / "pairs.json").read_text())]
    rendered_dataset(backend, "pairs", [rendered(pairs[:100]), rendered(pairs[100:])])
    for name, count, seed in (("rankings", 1024, 0), ("heldout", 128, 1)):
        rendered_dataset(backend, name, [_rankings(count, seed)])


def _rankings(count: int, seed: int) -> pa.Table:
    """Rankings of 4 random texts, the text with more tokens below 512 first."""
    from tests.helpers.rendered import Text, rendered

    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        prompt = rng.integers(2, 2048, 8).tolist()
        texts: list[Text] = []
        for count_small in sorted(2 * rng.choice(9, 4, replace=False), reverse=True):
            tokens = [*rng.integers(2, 512, count_small), *rng.integers(512, 2048, 16 - count_small)]
            texts.append((prompt, [*rng.permutation(tokens).tolist(), 1]))
        records.append(texts)
    return rendered(records)


def train(
    folder: Path,
    run_name: str,
    steps: int,
    dataset: str,
    pairs: int,
    objective: str,
    more: str = "{}",
    rate: float = 1e-4,
) -> list[dict[str, Any]]:
    """Train a run from `base` in this process; its steps' records with the CPU seconds at their ends."""
    from fmscale.config import load_config
    from fmscale.train.run import run_training

    torch.set_num_threads(1)
    path = folder / f"{run_name}.yaml"
    model = json.dumps({**json.loads((folder / "model.json").read_text()), **json.loads(more)})
    text = CONFIG.format(
        store=folder / "store",
        dataset=dataset,
        pairs=pairs,
        run=run_name,
        folder=folder / "runs",
        steps=steps,
        rate=rate,
    )
    path.write_text(f"{text}model: {model}\nobjective: {objective}\n")
    records: list[dict[str, Any]] = []
    run_training(
        load_config(str(path)),
        show=lambda record: records.append({**record, "cpu": time.process_time()}),
        event=lambda record: None,
    )
    return records


def ours_dpo(folder: Path, mode: str, steps: int, pairs: int, turn: int) -> dict[str, Any]:
    """Steps of DPO, with the forwards that the job of the column computed in this process."""
    from fmscale.checkpoint.checkpoint import open_in
    from fmscale.checkpoint.read.meta import decoder_section
    from fmscale.data.samples.rendered import values_maker
    from fmscale.infer.load import _model
    from fmscale.infer.score import logps
    from fmscale.infer.value_columns import derive_values
    from fmscale.store.open import open_store

    forwards = 0

    def counted(model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nonlocal forwards
        forwards += 1
        return logps(model, given)

    if mode == "column":
        backend = open_store(str(folder / "store"))
        found = open_in(backend, "base", 1)
        model = _model(found, decoder_section(found.meta, "the benchmark"), SHAPE["vocab_size"], "cpu", torch.float32)
        maker = values_maker("logps", found.found.body["manifest"]["digest"], "fp32")
        derive_values(backend, "pairs", "train", "reference", maker, model, counted, threads=1)
    reference = "base@1" if mode == "column" else "model"
    records = train(folder, f"{mode}{turn}", steps, "pairs", pairs, f"{{kind: dpo, reference: {reference}}}")
    ends = [record["cpu"] for record in records]
    return {
        "steps": [b - a for a, b in itertools.pairwise(ends)],
        "losses": [record["loss"] for record in records],
        "reference_forwards": forwards,
    }


def ours_reward(folder: Path, quick: bool) -> dict[str, Any]:
    """Train a reward model on rankings, and score held-out ones."""
    from fmscale.checkpoint.checkpoint import open_in
    from fmscale.checkpoint.read.meta import decoder_section
    from fmscale.infer.load import _model
    from fmscale.infer.rankings import score_rankings
    from fmscale.store.open import open_store

    steps = 100 if quick else 200
    train(folder, "reward", steps, "rankings", 16, "{kind: reward}", '{"score": true}', 2e-3)
    backend = open_store(str(folder / "store"))
    found = open_in(backend, "reward", steps)
    model = _model(found, decoder_section(found.meta, "the benchmark"), SHAPE["vocab_size"], "cpu", torch.float32)
    result = score_rankings(model, backend, "heldout", "train", threads=1)
    return {"steps": steps, **asdict(result)}


def main() -> None:
    match sys.argv[1:]:
        case ["base", folder]:
            make_base(Path(folder))
            print("{}")
        case ["dpo", folder, mode, steps, pairs, turn]:
            print(json.dumps(ours_dpo(Path(folder), mode, int(steps), int(pairs), int(turn))))
        case ["reward", folder, quick]:
            print(json.dumps(ours_reward(Path(folder), quick == "1")))
        case words:
            print(json.dumps(run(quick="--quick" in words), indent=2))


if __name__ == "__main__":
    main()
