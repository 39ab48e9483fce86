"""Flat forwards: the same samples at any number of ranks, their bounds, their damage, their memory."""

import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmscale.config.spec import TextSpec
from fmscale.data.flat_loader import FlatLoader
from fmscale.data.forward import FlatForward
from fmscale.data.open import open_flat_loader
from fmscale.data.samples.specs import make_spec
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset
from tests.helpers.record_datasets import add_sizes, record_dataset

TEXT = TextSpec(tokenizer="bytes")
FORWARD = 512


def texts(count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(4), np.log(256), count)).astype(int)
    return pa.table({"text": ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths], "n": lengths})


def text_dataset(store: Backend, name: str = "texts", counts: tuple[int, ...] = (300, 150, 50)) -> Dataset:
    tables = [texts(count, seed) for seed, count in enumerate(counts)]
    dataset = record_dataset(store, name, tables)
    add_sizes(dataset, make_spec(TEXT, store, limit=FORWARD), tables)
    return dataset


def flat(store: Backend, **options: Any) -> FlatLoader:
    return open_flat_loader(
        store, **{"forward_tokens": FORWARD, "batch": 64, "dataset": "texts", "spec": TEXT, "threads": 2, **options}
    )


def take(loader: FlatLoader, steps: int) -> list[list[FlatForward]]:
    """The forwards of each step."""
    out = []
    with loader:
        for _ in range(steps):
            step = [next(loader)]
            while not step[-1].last_of_step:
                step.append(next(loader))
            out.append(step)
    return out


def samples(forwards: list[FlatForward]) -> dict[int, tuple[bytes, ...]]:
    """k -> tensors, positions and weights of the sample."""
    out = {}
    for forward in forwards:
        for k, (first, stop) in zip(forward.k.tolist(), itertools.pairwise(forward.bounds.tolist()), strict=True):
            assert k not in out
            tensors = [*(forward.parts[name] for name in sorted(forward.parts)), forward.positions, forward.weights]
            out[k] = tuple(tensor[0, first:stop].numpy().tobytes() for tensor in tensors)
    return out


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_number_of_ranks_delivers_the_same_samples(memory_store: Backend, ranks: int) -> None:
    text_dataset(memory_store)
    alone = take(flat(memory_store), 6)
    each = [take(flat(memory_store, dp_rank=rank, dp_size=ranks), 6) for rank in range(ranks)]
    for step in range(6):
        assert len({len(steps[step]) for steps in each}) == 1, "forwards of the ranks"
        together = samples([forward for steps in each for forward in steps[step]])
        assert together == samples(alone[step])
        assert sorted(together) == list(range(64 * step, 64 * step + 64))


def test_a_sample_is_the_text_of_its_record(memory_store: Backend) -> None:
    text_dataset(memory_store, counts=(80,))
    text = texts(80, 0)["text"].to_pylist()
    found = []
    for forward in itertools.chain.from_iterable(take(flat(memory_store, batch=40), 2)):
        tokens, labels = (forward.parts[name][0].numpy() for name in ("tokens", "labels"))
        assert len(tokens) <= FORWARD
        assert len(tokens) % 64 == 0
        assert forward.cu_seqlens[-1] == len(tokens)
        padding = int(forward.bounds[-1])
        assert forward.weights[0, :padding].eq(1).all()
        assert forward.weights[0, padding:].eq(0).all()
        for first, stop in itertools.pairwise(forward.bounds.tolist()):
            found.append(bytes(tokens[first:stop].astype("uint8")).decode())
            assert labels[first : stop - 1].tolist() == tokens[first + 1 : stop].tolist()
            assert labels[stop - 1] == 257
            assert forward.positions[0, first:stop].tolist() == list(range(stop - first))
    assert sorted(found) == sorted(text)


@pytest.mark.parametrize(("size", "nodes"), [(1, 1), (2, 1), (2, 2), (4, 4)])
def test_padding_is_below_4_percent_and_nodes_differ_by_5_percent_at_most(
    memory_store: Backend, size: int, nodes: int
) -> None:
    """64 samples a step in four forwards, of 4 to 256 tokens."""
    text_dataset(memory_store)
    each = [
        take(flat(memory_store, forward_tokens=1536, dp_rank=rank, dp_size=size, nodes=nodes), 7)
        for rank in range(size)
    ]
    forwards = [forward for steps in each for step in steps for forward in step]
    assert len(forwards) <= 7 * 4
    positions = sum(forward.weights.numel() for forward in forwards)
    tokens = sum(int(forward.bounds[-1]) for forward in forwards)
    assert 1 - tokens / positions <= 0.04
    if nodes > 1:
        loads = np.array([[sum(int(f.bounds[-1]) for f in step) for step in steps] for steps in each])
        assert (loads.max(0) <= 1.05 * loads.mean(0)).all()


def test_state_goes_on_at_another_number_of_ranks(memory_store: Backend) -> None:
    text_dataset(memory_store)
    loader = flat(memory_store)
    wanted = [samples(step) for step in take(flat(memory_store), 6)]
    take(loader, 0)
    for step in range(3):
        loader = flat(memory_store, dp_size=step + 1)
        with loader:
            loader.load_state_dict({**loader.state_dict(), "k": 64 * step})
            assert len(json.dumps(loader.state_dict())) <= 1024
            others = [flat(memory_store, dp_rank=rank, dp_size=step + 1) for rank in range(1, step + 1)]
            for other in others:
                other.load_state_dict(loader.state_dict())
            each = [take(one, 3) for one in (loader, *others)]
        for after in range(3):
            assert samples([f for steps in each for f in steps[after]]) == wanted[step + after]
