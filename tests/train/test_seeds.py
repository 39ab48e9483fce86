"""Dropout is a function of seed, step, rank and microbatch."""

import itertools

import torch

from fmscale.train.seeds import seed_dropout, seed_of


def test_the_same_numbers_give_the_same_dropout() -> None:
    def drawn(*numbers: int) -> list[float]:
        seed_dropout(*numbers)
        return torch.rand(4).tolist()

    kept = len(torch.cuda._queued_calls)
    assert drawn(1, 2, 3, 4) == drawn(1, 2, 3, 4)
    assert len(torch.cuda._queued_calls) == kept, "a step of a CPU leaves nothing behind for a GPU"
    assert len({tuple(drawn(*numbers)) for numbers in itertools.product((0, 1), repeat=4)}) == 16


def test_neighbouring_numbers_share_about_half_their_bits() -> None:
    shared = [bin(seed_of(7, step) ^ seed_of(7, step + 1)).count("1") for step in range(1000)]
    assert 28 < sum(shared) / len(shared) < 35
