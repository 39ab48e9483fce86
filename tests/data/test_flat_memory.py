"""Host memory of the loader of flat forwards: within its budget for records of very uneven sizes; no hang."""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.flat_loader import FlatLoader
from fmscale.data.open import open_flat_loader
from fmscale.data.reading import maker
from fmscale.data.reading.flat_planner import assign_steps, unit_keys
from fmscale.data.samples.protocol import Record
from fmscale.data.views import record_view
from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.own_specs import Bytes
from tests.helpers.record_datasets import add_sizes, record_dataset

HANG = 60.0
"""Seconds after which an epoch of some hundred records hangs, on the busiest machine."""


@dataclass(frozen=True, kw_only=True)
class Begin(Bytes):
    """The first letters of a text: samples are small, whatever their records are."""

    def size(self, record: Record) -> int:
        return min(len(record["text"]), 100)

    def decode(self, record: Record) -> Any:
        return record["text"][:100].encode()


def uneven(count: int, most: int) -> list[int]:
    """Sizes from 200 bytes to 8 KB, and a record in 25 between a quarter of `most` and `most`."""
    rng = np.random.default_rng(0)
    small = np.exp(rng.uniform(np.log(200), np.log(8000), count)).astype(int)
    return [int(n) for n in np.where(rng.random(count) < 0.04, rng.integers(most // 4, most, count), small)]


@pytest.fixture(scope="module")
def store() -> Backend:
    backend = open_store("memory://flat-memory")
    tables = [pa.table({"text": ["x" * size for size in sizes]}) for sizes in (uneven(300, 200_000), [1000] * 60)]
    add_sizes(record_dataset(backend, "uneven", tables), Begin(), tables)
    return backend


def flat(store: Backend, *, unit: int = 2**15, **options: Any) -> FlatLoader:
    """Units of 32 KiB, so that a few MB have many. Of 8 KiB most are larger than the loader expects: a batch has 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_view, "UNIT_BYTES", unit)
        given = {"forward_tokens": 1024, "sample_tokens": 128, "dataset": "uneven", "spec": Begin(), "threads": 2}
        return open_flat_loader(store, **{**given, **options})


def needed(loader: FlatLoader, size: Callable[[tuple[int, int]], int], steps: int) -> int:
    """Most bytes of the units of a step."""
    most, k = 0, 0
    while steps > 0:
        for step in assign_steps(loader.plan, loader.schedule, loader._share, loader._sources, k):
            keys, _ = unit_keys(loader.plan, step)
            mine = {keys[i] for forward in step.forwards for i in forward if step.near[i]}
            most, k, steps = max(most, sum(map(size, mine))), step.after, steps - 1
    return most


def within(seconds: float, work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "hangs"
    if errors:
        raise errors[0]


@settings(max_examples=12)
@given(
    batch=st.integers(1, 40),
    window=st.sampled_from([1, 2, 7, 64, 2048]),
    place=st.sampled_from([(0, 1, 1), (1, 2, 1), (1, 2, 2), (2, 3, 3)]),
    spare=st.sampled_from([0, 1, 8192, 200_000]),
    threads=st.integers(1, 3),
)
def test_every_epoch_ends_in_a_memory_that_just_fits(
    store: Backend, batch: int, window: int, place: tuple[int, int, int], spare: int, threads: int
) -> None:
    rank, size, nodes = place
    loader = flat(store, batch=batch, window=window, dp_rank=rank, dp_size=size, nodes=nodes, threads=threads)
    loader._arena.memory_bytes = needed(loader, _expected(loader), 360 // batch + 2) + spare
    loader.decoded_bytes = 1
    seen = []

    def epoch() -> None:
        with loader:
            while loader.k < 360:
                seen.extend(next(loader).k.tolist())

    within(HANG, epoch)
    assert len(set(seen)) == len(seen)
    assert size > 1 or sorted(seen) == list(range(loader.k))


def _expected(loader: FlatLoader) -> Callable[[tuple[int, int]], int]:
    return lambda key: loader._sources.of(loader.plan, key[0]).units.unit_bytes


@pytest.mark.parametrize(
    ("window", "unit", "batch"), [(1, 2**13, 16), (64, 2**13, 16), (1, 2**15, 8), (64, 2**15, 8), (2048, 2**15, 8)]
)
@pytest.mark.parametrize("slow", [False, True])
def test_memory_is_within_the_budget_and_a_step(
    store: Backend, monkeypatch: pytest.MonkeyPatch, window: int, unit: int, batch: int, slow: bool
) -> None:
    """A slow consumer lets the threads read and make until they wait for memory, or have all blocks ready."""
    budget = 2**20
    loader = flat(store, unit=unit, batch=batch, window=window, memory_bytes=budget, forward_tokens=512)
    units = loader._sources.of(loader.plan, 0).units
    sizes = {number: units.read(number).bytes for number in range(loader.plan.sources[0].view.units.n)}
    most = needed(loader, lambda key: sizes[key[1]], 2 * 360 // batch)
    live: list[weakref.ref[Any]] = []
    read = type(units).read

    def remember(self: Any, unit: int, next_use: int = 0) -> Any:
        out = read(self, unit, next_use)
        live.append(weakref.ref(out))
        return out

    monkeypatch.setattr(type(units), "read", remember)
    peak = 0
    with loader:
        while loader.k < 2 * 360:
            next(loader)
            if slow and loader._ahead is not None:
                settled(loader)
            held = sum(content.bytes for one in live if (content := one()) is not None)
            peak = max(peak, held + loader._maker._used)
    assert peak <= budget + most
    assert peak > budget // 4, "the budget is used"


def settled(loader: FlatLoader) -> None:
    """Wait until planner and reads are at rest: twice the same state, and nothing in the pool's queue."""
    assert loader._ahead is not None
    pool, ahead, before = loader._ahead._pool, loader._ahead, None
    while True:
        now = (loader._arena.used, len(loader._arena.slots), len(ahead._ready), pool._work_queue.qsize())  # type: ignore
        if now == before and now[-1] == 0:
            return
        before = now
        threading.Event().wait(0.002)


def test_a_delivered_forward_belongs_to_its_consumer_alone(store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    concatenate = maker.concatenated

    def remember(*arguments: Any) -> Any:
        out = concatenate(*arguments)
        made.append(weakref.ref(out[1]))
        return out

    monkeypatch.setattr(maker, "concatenated", remember)
    loader = flat(store, batch=64, forward_tokens=128)
    loader.decoded_bytes = 1
    jobs: list[weakref.ref[Any]] = []
    take_block = loader._next_block

    def next_block() -> Any:
        assert all(job() is None for job in jobs), "units of the step before are free"
        block = take_block()
        jobs.extend(map(weakref.ref, block.jobs))
        return block

    monkeypatch.setattr(loader, "_next_block", next_block)
    with loader:
        while next(loader).step < 2:
            assert sum(one() is not None for one in made) <= 3
    assert len(made) > 40
