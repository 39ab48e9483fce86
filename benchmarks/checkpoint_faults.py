"""C6: kills of trainers and of persist processes, and damage to stored files; all must be detected or survived."""

import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Claim
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.checkpoint.persist.test_kills import campaign, kill_writers
from tests.checkpoint.states import RUN, Fleet, Tensors, assert_restores

STATE: Tensors = {(f"w{i}", "weight"): ("float32", (300, 150)) for i in range(4)}

Damage = Callable[[random.Random, Backend, str], None]


def fault_claims(work: Path, *, quick: bool) -> list[Claim]:
    """Counts of lost, mixed and undetected states, and of false alarms."""
    kills = 4 if quick else 100
    claims = [
        counted("trainers killed", kills, lambda seed: campaign(str(work / "kills"), kills, seed)),
        counted("persist processes killed", kills, lambda seed: kill_writers(str(work / "writers"), kills, seed)),
    ]
    for folder in ("kills", "writers"):
        shutil.rmtree(work / folder, ignore_errors=True)
    return [*claims, damage_claim(20 if quick else 200)]


def counted(what: str, count: int, run: Callable[[int], None]) -> Claim:
    """A campaign that raises if an acknowledged save was lost, or steps are mixed."""
    reason, lost = "", 0
    try:
        run(11)
    except AssertionError as error:
        reason, lost = str(error), 1
    return Claim(
        id=f"C6.{what.split()[0]}",
        what=f"{count} {what} at random times: acknowledged checkpoints lost or mixed",
        unit="",
        ours=lost,
        target="0",
        ok=lost == 0,
        reasons={"fmscale": reason} if reason else {},
    )


def flip(chance: random.Random, store: Backend, key: str) -> None:
    """Flip a bit of a tensor."""
    data = bytearray(store.get(key))
    data[chance.randrange(4096, len(data))] ^= 1 << chance.randrange(8)
    store.put(key, bytes(data))


def truncate(chance: random.Random, store: Backend, key: str) -> None:
    """Cut off the end."""
    data = store.get(key)
    store.put(key, data[: chance.randrange(4096, len(data) - 1)])


def remove(chance: random.Random, store: Backend, key: str) -> None:
    """Delete the file."""
    store.delete(key)


def swap(chance: random.Random, store: Backend, key: str) -> None:
    """Exchange two ranks' files."""
    other = key.replace("rank-00000", "rank-X").replace("rank-00001", "rank-00000").replace("rank-X", "rank-00001")
    mine, theirs = store.get(key), store.get(other)
    store.put(key, theirs)
    store.put(other, mine)


def stale(chance: random.Random, store: Backend, key: str) -> None:
    """Put the previous checkpoint's whole file there."""
    store.put(key, store.get(key.replace("0000000003", "0000000002")))


def zero(chance: random.Random, store: Backend, key: str) -> None:
    """Overwrite a page with zeros."""
    data = bytearray(store.get(key))
    at = chance.randrange(1, len(data) // 4096 - 1) * 4096
    data[at : at + 4096] = bytes(4096)
    store.put(key, bytes(data))


def damage_claim(count: int) -> Claim:
    """Each kind `count` times (a quarter of it for all but flips), and as many undamaged controls."""
    url = f"memory://{uuid.uuid4().hex}"
    config = CheckpointConfig(incremental=False)
    with Fleet(url, tensors=STATE, ranks=2, seed=None, config=config) as fleet:
        for step in (1, 2, 3):
            fleet.saved(step)
    store = open_store(url)
    keys = [info.key for info in store.list_objects(f"runs/{RUN}/checkpoints/0000000003-00001")]
    keys = [key for key in keys if key.endswith("safetensors")]
    whole = {key: store.get(key) for key in keys}
    chance = random.Random(5)
    runs: list[dict[str, Any]] = []
    for kind in (flip, truncate, remove, swap, stale, zero):
        tries = count if kind is flip else max(1, count // 4)
        runs.append({"system": kind.__name__, "tried": tries, "unseen": 0})
        for _ in range(tries):
            kind(chance, store, chance.choice(keys))
            runs[-1]["unseen"] += not restores(url, 2)
            for key, data in whole.items():
                store.put(key, data)
    alarms = sum(not restores(url, 3) for _ in range(count))
    runs.append({"system": "none", "tried": count, "unseen": alarms})
    bad = sum(run["unseen"] for run in runs)
    return Claim(
        id="C6.damage",
        what=f"{sum(run['tried'] for run in runs)} damages and controls: unseen, not made good, or false alarms",
        unit="",
        ours=bad,
        target="0",
        ok=bad == 0,
        runs=runs,
    )


def restores(url: str, step: int) -> bool:
    """True if two ranks restore exactly that step."""
    try:
        assert_restores(url, step, tensors=STATE)
    except AssertionError:
        return False
    return True
