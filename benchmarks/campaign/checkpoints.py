"""Stored files of checkpoints that are flipped, cut, deleted and exchanged at random, between steps and runs too."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.campaign.outcome import Outcome
from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.read.verify import verify
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import FmscaleError
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, restore_in, wrong

STATE: Tensors = {(f"{kind}{i}", "weight"): ("float32", (300, 150)) for kind in ("w", "frozen") for i in range(2)}
"""Later steps refer to the frozen tensors of step 1."""
OFFSET = {RUN: 0, "other": 100}
"""The runs, and the difference of their values' steps from their own."""
STEPS = (1, 2, 3)
FOLDER = "runs/{run}/checkpoints/{step:010d}-00001"


def changing(piece: Piece) -> bool:
    """False for a frozen tensor."""
    return not piece.name.startswith("frozen")


def damaged_checkpoints(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """Each damage is found by a restore or by `verify`, and no restore gives anything but a step's exact values."""
    torch.set_num_threads(1)
    url, chance = str(folder / "store"), random.Random(seed)
    for run, offset in OFFSET.items():
        config = CheckpointConfig(grace_seconds=0.0)
        with Fleet(url, tensors=STATE, ranks=2, seed=None, config=config, run=run, offset=offset) as fleet:
            for step in STEPS:
                fleet.saved(step, changed=lambda piece, step=step: step == 1 or changing(piece))
    store = open_store(url)
    whole = {info.key: store.get(info.key) for info in store.list_objects("runs")}
    said = Warnings()
    logging.getLogger("fmscale.checkpoint.catalog").addHandler(said)
    logging.getLogger("fmscale.checkpoint.read.restore").setLevel(logging.ERROR)
    for run in OFFSET:
        outcome = judged(store, {f"runs/{run}/"}, 2, "no damage", said)
        if outcome.fault != "silent":
            yield Outcome(count=0, fault="mixed", reason=f"a false alarm: {outcome}")
    for number in range(target):
        name, changes = drawn(chance, whole)
        for key, data in changes.items():
            store.put(key, data) if data is not None else store.delete(key)
        yield judged(store, set(changes), 1 + number % 2, f"{name} of {', '.join(sorted(changes)[:2])}", said)
        for key in changes:
            store.put(key, whole[key])


class Warnings(logging.Handler):
    """Keeps the log's warning of a folder that is newer than every entry."""

    seen = False

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        self.seen = True


def drawn(chance: random.Random, whole: dict[str, bytes]) -> tuple[str, dict[str, bytes | None]]:
    """A damage by name, and the new contents of its keys; None for a deleted object."""
    while True:
        key = chance.choice(list(whole))
        data = whole[key]
        name = chance.choice(("flip", "cut", "delete", "zero", "swap", "swap", "exchange"))
        changes: dict[str, bytes | None] = {}
        if name == "flip":
            changed = bytearray(data)
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            changes[key] = bytes(changed)
        elif name == "cut":
            changes[key] = data[: chance.randrange(len(data))]
        elif name == "delete":
            changes[key] = None
        elif name == "zero":
            at = chance.randrange(len(data))
            changes[key] = data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]
        elif name == "swap":
            alike = [other for other in whole if other.rpartition(".")[2] == key.rpartition(".")[2]]
            other = chance.choice(alike if chance.random() < 0.8 else list(whole))
            changes = {key: whole[other], other: data}
        else:
            mine, theirs = (FOLDER.format(run=chance.choice([*OFFSET]), step=chance.choice(STEPS)) for _ in range(2))
            for old, new in ((mine, theirs), (theirs, mine)):
                changes |= {new + k.removeprefix(old): v for k, v in whole.items() if k.startswith(f"{old}/")}
            changes = {k: v for k, v in changes.items() if k in whole}
        changes = {k: v for k, v in changes.items() if v != whole[k]}
        if changes and not all(harmless(k, v) for k, v in changes.items()):
            return name, changes


def harmless(key: str, data: bytes | None) -> bool:
    """True for a seal that is lost or empty: nothing but `verify` reads it after the commit, and it says so."""
    return "/checkpoints/" in key and key.endswith(".json") and not (data or b"").strip(b"\0")


def judged(store: Backend, keys: set[str], ranks: int, name: str, said: Warnings) -> Outcome:
    """Restore and verify the runs of these keys, in as many ranks; the outcome."""
    found = said.seen = False
    for run in sorted({key.split("/")[1] for key in keys}):
        try:
            results, pieces = restore_in(store.url, ranks, tensors=STATE, run=run)
            [step] = {result.step if result else 0 for result in results}
            live = [wrong([p for p in mine if changing(p)], step + OFFSET[run]) for mine in pieces]
            frozen = [wrong([p for p in mine if not changing(p)], 1 + OFFSET[run]) for mine in pieces]
            if step == 0 or any([*live, *frozen]):
                return Outcome(fault="mixed", reason=f"{name}: a restore of {run} gave step {step}: {live}, {frozen}")
            found |= any(result.passed_over for result in results if result)
        except FmscaleError:
            found = True
        except Exception as error:
            return Outcome(fault="crashed", reason=f"{name}: restore: {type(error).__name__}: {error}")
        try:
            found |= any(verify(store, checkpoint)[0] for checkpoint in list_checkpoints(store, run))
        except FmscaleError:
            found = True
        except Exception as error:
            return Outcome(fault="crashed", reason=f"{name}: verify: {type(error).__name__}: {error}")
    return Outcome() if found or said.seen else Outcome(fault="silent", reason=name)
