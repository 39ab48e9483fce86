"""Whole training runs in the tests: a corpus of two sources, a config, and the records of a run."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.format.piece import elements
from fmscale.config import Config, load_config
from fmscale.data.ingest import ingest
from fmscale.data.provenance.delivery import read_records, without_repeats
from fmscale.runtime.sinks.jsonl import read_jsonl
from tests.helpers.deepspeed_numbers import restart_numbers

T = 48

CONFIG = """
store: {{url: {store}}}
data:
  sequence_length: {T}
  memory_bytes: 8_388_608
  sources:
    - {{dataset: prose, weight: 3}}
    - {{dataset: sums, weight: 1}}
model: {{num_layers: 2, dim: 32, num_heads: 2, num_kv_heads: 1, max_seq_len: {T}, dropout: 0.1}}
batch: {{global_batch: 6, micro_batch: 1}}
train: {{run: run, folder: {folder}, steps: 8, log_every: 1, precision: fp32, record_delivery: true}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: 0.003}}
checkpoint: {{every: 3}}
"""


def make_corpus(folder: Path) -> str:
    """A store with the datasets `prose` and `sums`, some held out; its path."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(200)]
    for name in ("prose", "sums"):
        source = folder / name
        source.mkdir()
        for i in range(40):
            if name == "prose":
                text = " ".join(rng.choice(words) for _ in range(rng.randint(5, 120)))
            else:
                pairs = [(rng.randint(0, 99), rng.randint(0, 99)) for _ in range(rng.randint(3, 30))]
                text = "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs)
            (source / f"{i:03d}.txt").write_text(text)
        ingest(
            [str(source)],
            store=str(folder / "store"),
            dataset=name,
            tokenizer="bytes",
            heldout=0.2,
            workers=1,
        )
    return str(folder / "store")


def write_config(folder: Path, store: str) -> Path:
    """The config of a run whose local folder is below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(store=store, T=T, folder=folder))
    return path


def train_here(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`fmscale train` as this rank of the test's ranks; the outcome, and the rank's output."""
    from fmscale.train.run import run_training

    restart_numbers()
    config: Config = load_config(path, overrides)
    shown: list[Mapping[str, Any]] = []
    events: list[Mapping[str, Any]] = []
    phases: list[str] = []
    outcome = run_training(config, show=shown.append, event=events.append, phase=phases.append)
    return {**outcome.to_json(), "shown": shown, "events": events, "phases": phases}


def state_at_begin(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> list[tuple[str, str, int, Any]]:
    """Train as this rank; copies of its pieces before its first step, (name, state, start, values), and of forward's
    whole weights, under the state `forward`.
    """
    import deepspeed

    from fmscale.train.loop import run_loop

    held: list[tuple[str, str, int, Any]] = []

    def look(loop: Any, length: Any, stepped: Any) -> Any:
        held.extend((p.name, p.state, p.start, p.tensor.clone()) for p in loop.engine.pieces(save=True))
        named = dict(loop.engine.module.named_parameters())
        sharded = [p for p in named.values() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            for name, parameter in named.items():
                held.append((name.split("model.", 1)[1], "forward", 0, parameter.detach().clone().view(-1)))
        return run_loop(loop, length, stepped)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.run.run_loop", look)
        train_here(rank, size, path, overrides)
    return held


def check_state(ranks: list[list[tuple[str, str, int, Any]]], saved: Checkpoint, states: Sequence[str] = ()) -> None:
    """The ranks hold each element of the checkpoint's tensors (in `states`, if given) once, and forward its weights."""
    seen: dict[Any, int] = {}
    for name, state, start, values in (piece for rank in ranks for piece in rank):
        if state == "forward":
            want = saved.tensor(name).view(-1)
            assert torch.equal(values, want.to(values.dtype)), f"{name}: the weight is not its master, cast"
        elif not states or state in states:
            want = saved.tensor(name, state).view(-1)[start : start + len(values)]
            assert torch.equal(values, want.to(values.dtype)), (name, state)
            seen[name, state] = seen.get((name, state), 0) + len(values)
    tensors = [tensor for tensor in saved.manifest.tensors if not states or tensor.state in states]
    assert seen == {(tensor.name, tensor.state): elements(tensor.shape) for tensor in tensors}


def steps_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The records of a run's steps; the later record of a repeated step."""
    return {r["step"]: r for r in read_jsonl(folder / "metrics.jsonl") if "event" not in r}


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("event") == kind]


def delivered(folder: Path) -> pa.Table:
    """All samples that the run's model received, once each, in order."""
    return without_repeats(read_records(sorted((folder / "delivery").glob("*.arrow"))))
