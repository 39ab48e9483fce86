"""Every row of the benchmark, in the order in which they are measured."""

from collections import Counter
from dataclasses import replace

from benchmarks.kernels.attention_rows import attention_rows
from benchmarks.kernels.contest import ContestRow
from benchmarks.kernels.loss_rows import loss_rows
from benchmarks.kernels.memory_rows import further_rows, memory_rows
from benchmarks.kernels.sizes import FULL, QUICK, TINY, Sizes


def all_rows(sizes: Sizes) -> list[ContestRow]:
    """The largest row of every claim, then the next row of every claim: a slow machine loses the least.

    The rows of `further_rows` come last.
    """
    asked = sorted([*attention_rows(sizes), *memory_rows(sizes), *loss_rows(sizes)], key=lambda row: -row.flops)
    place: Counter[str] = Counter()
    turns = []
    for row in asked:
        turns.append((place[row.id], row))
        place[row.id] += 1
    return [*(row for _, row in sorted(turns, key=lambda pair: pair[0])), *further_rows(sizes)]


def full() -> list[ContestRow]:
    """The rows of the whole benchmark."""
    return all_rows(FULL)


def quick() -> list[ContestRow]:
    """The rows of the quick benchmark: the same code on smaller problems."""
    return all_rows(QUICK)


def attention_at_8k() -> list[ContestRow]:
    """The quick benchmark's attention rows, at 8,192 tokens."""
    return sorted(attention_rows(replace(QUICK, lengths=(8192,))), key=lambda row: row.id.startswith("window"))


def tiny() -> list[ContestRow]:
    """A row that an interpreter can run; its peers compile nothing."""
    wanted = ("forward causal E=64", f"T={TINY.lengths[-1]}")
    return [row for row in attention_rows(TINY) if (row.id, row.variant) == wanted]
