"""Attention problems as values: tensors from a seed, run by any backend, judged by eager in fp64."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fmscale.kernels import flash_attention
from fmscale.kernels.dispatch import forced
from torch import Tensor

from tests.kernels.policy import check, gradients

TILE = 32
"""Rows and keys of a tile in the tests that count tiles."""


@contextmanager
def tiles(m: int = TILE, n: int = TILE) -> Iterator[None]:
    """Launch every attention kernel with m queries and n keys a tile."""
    with ExitStack() as stack:
        for kernel in ("forward", "dkdv", "dq"):
            launch = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": 4, "num_stages": 2}
            stack.enter_context(forced("attention", kernel, launch))
        yield


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call of attention."""

    dtype: torch.dtype = torch.float32
    """Type of q, k, v and sinks."""
    E: int = 32
    """Head dim."""
    H: int = 4
    """Query heads."""
    K: int = 2
    """Key heads."""
    B: int = 1
    """Batch of a dense problem."""
    T: int = 70
    """Queries of a dense problem."""
    S: int = 70
    """Keys of a dense problem."""
    documents: tuple[int, ...] | None = None
    """Query lengths of the documents of a packed problem."""
    keys: tuple[int, ...] | None = None
    """Key lengths of the documents; None for the queries' lengths."""
    tail: int = 0
    """Tokens after the last document, of q and of k."""
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    scale: float | None = None
    loud: float = 1.0
    """Factor on q: large scores make the soft-cap and the running maximum work."""

    def __str__(self) -> str:
        fields = dataclasses.fields(self)
        said = [(f.name, getattr(self, f.name)) for f in fields if getattr(self, f.name) != f.default]
        return " ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in said)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """q, k, v and, if set, sinks."""
        generator = torch.Generator().manual_seed(sum(map(ord, str(self))))
        shape_q: tuple[int, ...]
        shape_k: tuple[int, ...]
        if self.documents is None:
            shape_q, shape_k = (self.B, self.T, self.H, self.E), (self.B, self.S, self.K, self.E)
        else:
            shape_q = (sum(self.documents) + self.tail, self.H, self.E)
            shape_k = (sum(self.keys or self.documents) + self.tail, self.K, self.E)
        shapes = [shape_q, shape_k, shape_k] + ([(self.H,)] if self.sinks else [])
        found = [torch.randn(shape, generator=generator) for shape in shapes]
        found[0] *= self.loud
        return [one.to(device, self.dtype) for one in found]

    def upstream(self, device: torch.device) -> list[Tensor]:
        """Gradients of the output and of the log-sum-exp."""
        generator = torch.Generator().manual_seed(7)
        q = self.tensors(torch.device("cpu"))[0]
        packed = self.documents is not None
        rows = (self.H, q.shape[0]) if packed else (self.B, self.H, self.T)
        shapes = [tuple(q.shape), rows]
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    def offsets(self, device: torch.device) -> dict[str, Tensor | None]:
        """The cu_seqlens arguments."""
        if self.documents is None:
            return {}
        ends = [torch.tensor([0, *itertools.accumulate(one)], dtype=torch.int32, device=device)
                for one in (self.documents, self.keys or self.documents)]  # fmt: skip
        return {"cu_seqlens": ends[0], "cu_seqlens_k": ends[1] if self.keys is not None else None}

    def run(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, *, backend: str) -> Any:
        """(output, log-sum-exp)."""
        return flash_attention(
            q, k, v, causal=self.causal, window=self.window, softcap=self.softcap, sinks=sinks,
            scale=self.scale, return_lse=True, backend=backend, **self.offsets(q.device),
        )  # fmt: skip


NAMES = ("out", "lse", "dq", "dk", "dv", "dsinks")


def results(problem: Problem, inputs: Sequence[Tensor], backend: str) -> list[Tensor]:
    """Output, log-sum-exp and the gradients of every input, for the problem's upstream gradients."""
    outs, grads = gradients(
        lambda *tensors: problem.run(*tensors, backend=backend),
        list(inputs),
        problem.upstream(inputs[0].device),
    )
    return [*outs, *grads]


def judge(problem: Problem, device: torch.device, *, small: bool = False) -> None:
    """Fail unless Triton's outputs and gradients are as near to fp64 as `policy` asks.

    small: the problem may have so few rows, or so few keys a row, that eager is exact by luck; then, and always for
    dsinks, which are H numbers, the terms determine the ulp.
    """
    inputs = problem.tensors(device)
    ours = results(problem, inputs, "triton")
    same = results(problem, inputs, "eager")
    golden = results(problem, [one.double() for one in inputs], "eager")
    terms = cancelling(problem, inputs, golden)
    for name, mine, eager, gold in zip(NAMES, ours, same, golden, strict=False):
        check(mine, eager, gold, name=name, terms=terms.get(name) if small or name == "dsinks" else None)


def cancelling(problem: Problem, inputs: list[Tensor], golden: list[Tensor]) -> dict[str, Tensor]:
    """Magnitudes of summands that may cancel: scores over E, and from them lse; delta over E, and from it the
    gradients.

    A row with a single key has dS = P (dP - delta) of two equal sums, dO V and dO O - dLSE: eager computes both from
    the same numbers and gets exactly 0; a kernel with delta from the output rounds them differently.
    """
    dout, dlse = (x.double() for x in problem.upstream(inputs[0].device))
    delta = (dout * golden[0]).abs().sum(-1).transpose(-1, -2) + dlse.abs()
    q, k = (x.double() for x in inputs[:2])
    if not q.numel() or not k.numel():
        return {}
    scale = problem.E**-0.5 if problem.scale is None else problem.scale
    found = {"lse": largest_score(q, k, scale)}
    found |= {"dq": scale * k.abs().max() * delta, "dk": scale * q.abs().max() * delta}
    if problem.sinks:
        share = (inputs[3].double()[:, None] - golden[1]).exp() * delta
        found["dsinks"] = (share if problem.documents is not None else share.sum(0)).sum(-1)
    return found


def largest_score(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Bound of sum |q k| over E for all pairs of rows."""
    bound: Tensor = scale * torch.linalg.vector_norm(q, dim=-1).max() * torch.linalg.vector_norm(k, dim=-1).max()
    return bound


def far(x: Tensor, *strides: int) -> Tensor:
    """`x` with these strides in fresh storage, of which only the touched pages become real memory."""
    size = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    # shared memory from the system, not malloc: pages appear when touched
    storage = torch.UntypedStorage(size * x.element_size(), device=x.device)
    found = torch.empty(0, dtype=x.dtype, device=x.device).set_(storage, 0, x.shape, strides)
    return found.copy_(x)


def pairwise(choices: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Few combinations such that every two choices of every two names meet in one of them."""
    generator = random.Random(seed)
    names = list(choices)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(choices[names[a]]))
        for j in range(len(choices[names[b]]))
    }

    def covered(row: Sequence[int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
        return missing & set(itertools.combinations(enumerate(row), 2))

    found = []
    while missing:
        (a, i), (b, j) = min(missing)
        tried = [[generator.randrange(len(choices[name])) for name in names] for _ in range(60)]
        for row in tried:
            row[a], row[b] = i, j
        best = max(tried, key=lambda row: len(covered(row)))
        missing -= covered(best)
        found.append({name: choices[name][index] for name, index in zip(names, best, strict=True)})
    return found
