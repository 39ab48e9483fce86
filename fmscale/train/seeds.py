"""Randomness as a function: dropout is seeded for each forward, so that no generator's state has to be saved."""

import torch

_MIX = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def seed_of(*numbers: int) -> int:
    """A 63-bit seed from numbers, each of which changes about half its bits (splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + _MIX + number) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_dropout(seed: int, step: int, rank: int, microbatch: int) -> None:
    """Seed the generators of the CPU and of this rank's GPU for a forward of a data-parallel rank: the same dropout
    whenever this forward runs again. (`torch.manual_seed` takes 2 ms on a CPU: it keeps each call, with its stack three
    times, for accelerators that may still be initialised.)
    """
    number = seed_of(seed, step, rank, microbatch)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)
