"""The pairs of T1, T2 and T4, in one process: python -m benchmarks.train_pairs FOLDER PAIRS STEPS."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.train_foreign import llama, mean_loss, nanogpt
from fmscale.config import Config, derive_batch, load_config
from fmscale.data.batch import Microbatch
from fmscale.data.ingest import ingest
from fmscale.objectives.protocol import Inputs
from fmscale.runtime.failure import Whereabouts
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.runtime.world import read_world
from fmscale.train.data import empty_batch
from fmscale.train.engine.protocol import Engine
from fmscale.train.length import run_length
from fmscale.train.loop import Loop, dry_run, run_loop
from fmscale.train.session import meet
from fmscale.train.setup import assemble

CONFIG = """
store: {{url: {store}}}
data: {{sequence_length: 256, memory_bytes: 67108864, sources: [{{dataset: code}}]}}
model: {{num_layers: 4, dim: 256, num_heads: 4, num_kv_heads: 2, max_seq_len: 256, vocab_size: 4096}}
batch: {{global_batch: 16, micro_batch: 8}}
train: {{run: bench, folder: {folder}, steps: 1000000, zero_stage: 2, log_every: 10}}
schedule: {{kind: constant, warmup_steps: 0}}
checkpoint: {{every: null}}
"""
"""4.2 M parameters, as the quickstart's."""


class NoSaves:
    """Saves nothing: checkpoints have a benchmark of their own."""

    blocking_seconds = 0.0
    clock_due = False

    def step_done(self, step: int, loader_state: dict[str, Any], **due: Any) -> None:
        """A save is never due, also at the end of a segment."""

    def fence(self) -> None:
        """No copy is under way."""


class Again:
    """A single step's batches, repeated as from a loader."""

    stall_seconds = 0.0

    def __init__(self, plan: Any, batches: list[Microbatch]) -> None:
        self.plan = plan
        self._stream = self._forever(batches)

    def state_dict(self) -> dict[str, Any]:
        """No state: nothing is restored."""
        return {}

    def __next__(self) -> Microbatch:
        return next(self._stream)

    def _forever(self, batches: list[Microbatch]) -> Iterator[Microbatch]:
        while True:
            yield from batches


def bare_loop(engine: Engine, rows: list[Inputs], tokens: float, steps: int) -> None:
    """A hand-written loop around the engine."""
    for _ in range(steps):
        for i, one in enumerate(rows):
            loss = engine.forward(one)
            engine.backward(loss.sum / tokens, last=i == len(rows) - 1)
        engine.step(1e-4)


def pairs(ours: Callable[[], None], other: Callable[[], None], tokens: int, count: int) -> list[dict[str, float]]:
    """`count` pairs of neighbouring segments in alternating order."""
    ours()
    other()
    found = []
    for number in range(count):
        sides = {"ours": ours, "other": other}
        rates = {}
        for name in ("ours", "other") if number % 2 else ("other", "ours"):
            began = time.perf_counter()
            sides[name]()
            rates[name] = tokens / (time.perf_counter() - began)
        found.append(rates)
    return found


def rounds(
    sides: dict[str, Callable[[int], None]], steps: int, tokens: int, count: int
) -> list[dict[str, tuple[float, float]]]:
    """`count` segments of each side in alternating order: tokens a second, and CPU-seconds."""
    found = []
    for number in range(count):
        spent = {}
        for name in list(sides) if number % 2 else reversed(sides):
            began, used = time.perf_counter(), time.process_time()
            sides[name](steps)
            spent[name] = tokens / (time.perf_counter() - began), time.process_time() - used
        found.append(spent)
    return found


def level(sides: dict[str, Callable[[int], None]], segments: list[dict[str, tuple[float, float]]]) -> float:
    """Train each side, step by step, until it has used the CPU-seconds of the side that used most; returns these."""
    used = {name: sum(segment[name][1] for segment in segments) for name in sides}
    budget = max(used.values())
    for name, train in sides.items():
        while used[name] < budget:
            began = time.process_time()
            train(1)
            used[name] += time.process_time() - began
    return budget


def main(folder: Path, count: int, steps: int, *, foreign: bool = True) -> dict[str, Any]:
    """Ingest the standard library's source, build a run, measure."""
    store = str(folder / "store")
    corpus = Path(json.__file__).parent.parent
    ingest([str(p) for p in sorted(corpus.glob("*.py"))], store=store, dataset="code", tokenizer="bpe:4096")
    (folder / "run.yaml").write_text(CONFIG.format(store=store, folder=folder))
    config: Config = load_config(folder / "run.yaml")
    world = read_world()
    batch = derive_batch(config.batch, world.world_size)
    with ExitStack() as stack:
        session = meet(config, world, Whereabouts(), stack)
        length = run_length(config, batch)
        built, _ = assemble(session, batch, length, stack, lambda r: None, lambda r: None)
        loop: Loop = replace(built, saving=NoSaves())  # type: ignore[arg-type]
        dry_run(loop, empty_batch(config, loop.loader, batch))
        step = 0

        def train(chosen: Loop, number: int = steps) -> None:
            nonlocal step
            run_loop(chosen, replace(length, first_step=step, steps=step + number))
            step += number

        def taken(number: int) -> list[Microbatch]:
            return [next(loop.loader) for _ in range(number * batch.accumulation)]

        tokens = steps * batch.global_batch * config.data.sequence_length
        begin = loop.loader.state_dict()
        each = [one.tokens.long() for one in taken(2 * count * steps)]
        unseen = [one.tokens.long() for one in taken(2)]
        loop.loader.load_state_dict(begin)
        found: dict[str, Any] = {}
        if foreign:
            in_steps = [each[at : at + batch.accumulation] for at in range(0, len(each), batch.accumulation)]
            others = {
                "transformers": llama(config, loop.engine, iter(in_steps)),
                "nanogpt": nanogpt(config, iter(in_steps)),
            }
            sides: dict[str, Callable[[int], None]] = {name: other.train for name, other in others.items()}
            sides = {"ours": partial(train, loop), **sides}
            found["foreign"] = rounds(sides, steps, tokens, count)
            found["losses"] = {name: other.losses[:] for name, other in others.items()}
            found["seconds"] = level(sides, found["foreign"])
            logits = {name: other.logits for name, other in others.items()}
            logits["ours"] = lambda ids: loop.engine.module(lambda model: model.head(model(ids)))
            found["unseen"] = {name: mean_loss(logits[name], unseen) for name in sides}
        ready = taken(1)
        rows = [loop.engine.objective.collate(one).to(session.device) for one in ready]
        valid = sum(float(one.weights.sum()) for one in rows)
        again: Loop = replace(loop, loader=Again(loop.loader.plan, ready))  # type: ignore[arg-type]
        found["overhead"] = pairs(
            lambda: train(loop), lambda: bare_loop(loop.engine, rows, valid, steps), tokens, count
        )
        found["feed"] = pairs(lambda: train(loop), lambda: train(again), tokens, count)
    if "foreign" in found:
        records = read_jsonl(session.folder / "metrics.jsonl")
        found["losses"]["ours"] = [record["loss"] for record in records if "loss" in record][: count * steps]
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
