"""Flat forwards: every sample once, within its forward, by its size alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.data.plan.flat import NODE_EXCESS, by_slot, deal, level, rounded

SIZES = st.lists(st.integers(1, 512), min_size=1, max_size=80)
NODES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SIZES, NODES, st.integers(8, 40))
def test_every_sample_once_in_a_forward_that_holds_it(sizes: list[int], nodes: list[int], blocks: int) -> None:
    dealt = deal(np.array(sizes), nodes, 64 * blocks + 63)
    assert sorted(i for rank in dealt for forward in rank for i in forward) == list(range(len(sizes)))
    assert len(dealt) == sum(nodes)
    assert len({len(rank) for rank in dealt}) == 1
    assert max(rounded(sum(sizes[i] for i in forward)) for rank in dealt for forward in rank) <= 64 * blocks


def mixed(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(rng.lognormal(5.5, 0.8, count), 8, 2048).astype(np.int64)


def test_four_forwards_of_64_mixed_samples_waste_less_than_4_percent() -> None:
    """Against a device that waits for the longest forward of each turn."""
    rng = np.random.default_rng(0)
    waste = []
    for _ in range(50):
        sizes = mixed(rng, 64)
        [rank] = deal(sizes, [1], 64 * int(np.ceil(sizes.sum() / 4 / 64 * 1.02)) + 64)
        assert len(rank) == 4
        waste.append(1 - sizes.sum() / sum(rounded(int(sizes[forward].sum())) for forward in rank))
    assert np.median(waste) < 0.01
    assert max(waste) < 0.04


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_nodes_have_equal_loads_and_few_samples_move(nodes: int) -> None:
    rng = np.random.default_rng(nodes)
    moved = []
    for _ in range(50):
        sizes = mixed(rng, 64 * nodes)
        before = by_slot(len(sizes), [2] * nodes)
        after = level(sizes, before, [2] * nodes)
        load = np.array([sizes[share].sum() for share in after])
        assert load.max() <= NODE_EXCESS * load.mean()
        moved.append(
            sum(sizes[np.setdiff1d(new, old)].sum() for old, new in zip(before, after, strict=True)) / sizes.sum()
        )
    assert np.mean(moved) < 0.08


def test_eight_samples_a_node_of_very_mixed_lengths_are_exchanged() -> None:
    """Without exchanges the fullest node of half of the steps has up to 1.9 times its share."""
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(100):
        sizes = np.exp(rng.uniform(np.log(200), np.log(40_000), 64)).astype(np.int64)
        shares = level(sizes, by_slot(64, [1] * 8), [1] * 8)
        assert sorted(np.concatenate(shares).tolist()) == list(range(64))
        excess.append(max(sizes[share].sum() for share in shares) / sizes.sum() * 8)
    assert np.mean(np.array(excess) > 1.0501) < 0.15
    assert max(excess) < 1.25


def test_a_sample_longer_than_a_nodes_share_stays_alone() -> None:
    sizes = np.array([1, 1, 1, 1, 1, 1, 1, 1000])
    [first, second] = level(sizes, by_slot(8, [1, 1]), [1, 1])
    assert 7 in second
    assert len(second) == 1
    assert len(first) == 7


def test_ranks_of_a_node_without_a_sample_have_an_empty_forward() -> None:
    assert deal(np.array([5, 3]), [3], 64) == [[[0]], [[1]], [[]]]
