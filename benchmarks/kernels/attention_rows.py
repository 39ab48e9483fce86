"""The attention rows: shapes and operation counts of their targets in `claims.py`."""

import random
from collections.abc import Callable, Mapping

import torch
from fmscale.kernels import flash_attention
from torch import Tensor

from benchmarks.kernels import peers
from benchmarks.kernels.claims import TARGETS
from benchmarks.kernels.contest import (
    Contest,
    Contestant,
    ContestRow,
    backward_of,
    both_of,
    forward_of,
)
from benchmarks.kernels.sizes import Sizes


def reference(
    q: Tensor, k: Tensor, v: Tensor, spans: list[tuple[int, int]],
    *, window: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention of one batch row (T, H, E) with one kv head, document by document, in q's dtype."""
    parts = []
    for start, end in spans:
        scores = torch.einsum("qhe,ke->hqk", q[start:end], k[start:end, 0]) * q.shape[-1] ** -0.5
        index = torch.arange(end - start, device=q.device)
        distance = index[:, None] - index[None, :]
        hidden = (distance < 0) | (distance >= (window or end - start))
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            column = sinks[:, None, None].expand(-1, end - start, 1).to(scores.dtype)
            scores = torch.cat((scores, column), -1)
        shares = scores.softmax(-1)[..., : end - start]
        parts.append(torch.einsum("hqk,ke->qhe", shares, v[start:end, 0]))
    return torch.cat(parts)


def documents(tokens: int, mean: int) -> list[tuple[int, int]]:
    """Spans of documents with exponentially distributed lengths, the same every time."""
    lengths: list[int] = []
    draw = random.Random(0)
    while sum(lengths) < tokens:
        lengths.append(min(tokens - sum(lengths), 1 + int(draw.expovariate(1 / mean))))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


Makers = dict[str, Callable[[], peers.Attention]]


def attention_problem(
    kind: str, sizes: Sizes, T: int, heads: int, E: int, device: torch.device,
    spans: list[tuple[int, int]], functions: Callable[[Tensor], Makers],
    *, window: int | None = None, with_sinks: bool = False, absent: Mapping[str, str] | None = None,
) -> Contest:  # fmt: skip
    """A contest of attention; `functions` makes the contestants from the sinks (heads,), which few of them use.

    The check compares two kv heads with their query heads, the first of the first row and the last of the last
    row: the fp32 scores of all heads would not fit.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random_(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(sizes.dtype)

    B, group = max(1, sizes.tokens // T), heads // sizes.kv_heads
    q, dout = random_(B, T, heads, E), random_(B, T, heads, E)
    k, v = random_(B, T, sizes.kv_heads, E), random_(B, T, sizes.kv_heads, E)
    sinks = random_(heads).float()

    def ends(t: Tensor) -> list[Tensor]:
        n = t.shape[2] // sizes.kv_heads
        return [t[0, :, :n], t[-1, :, -n:]]

    def compared(tensors: list[Tensor]) -> list[Tensor]:
        return [end for t in tensors for end in ends(t)]

    def call(function: peers.Attention) -> Contestant:
        if kind == "forward":
            return forward_of(function, [q, k, v], compared)
        return (backward_of if kind == "backward" else both_of)(function, [q, k, v], [dout], compared)

    def exact() -> list[Tensor]:
        found: list[list[Tensor]] = []
        for index, few in ((0, sinks[:group]), (1, sinks[-group:])):
            leaves = [ends(t)[index].float().requires_grad_() for t in (q, k, v)]
            out = reference(leaves[0], leaves[1], leaves[2], spans, window=window, sinks=few if with_sinks else None)
            results = [out.detach()] if kind != "backward" else []
            if kind != "forward":
                results += torch.autograd.grad(out, leaves, ends(dout)[index].float())
            found.append(results)
        return [end for pair in zip(*found, strict=True) for end in pair]

    makers = {name: lambda build=build: call(build()) for name, build in functions(sinks).items()}
    return Contest(makers=makers, reference=exact, absent=absent or {})


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """FlexAttention's causal mask."""
    return q >= k


def _dense(kind: str, id: str, E: int, T: int, sizes: Sizes) -> ContestRow:
    B = max(1, sizes.tokens // T)
    flops = 4 * B * sizes.heads * T * T / 2 * E * {"forward": 1.0, "backward": 2.5}[kind]
    touched = 2 * sizes.tokens * (sizes.heads + sizes.kv_heads) * E * sizes.dtype.itemsize
    shortest = min(sizes.lengths)
    compared_with = next({*target.must, *target.aim} for target in TARGETS if target.id == id)

    def build(device: torch.device) -> Contest:
        cu = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device)
        mask = torch.ones(T, T, dtype=torch.bool, device=device).tril()
        absent = {}

        def functions(_: Tensor) -> Makers:
            makers: Makers = {
                "ours": lambda: lambda q, k, v: flash_attention(q, k, v, backend="triton"),
                "flash": lambda: peers.sdpa("FLASH_ATTENTION", causal=True),
                "cudnn": lambda: peers.sdpa("CUDNN_ATTENTION", causal=True),
                "varlen": lambda: peers.varlen(cu, T),
                "fa4": lambda: peers.flash4(causal=True),
                "eager": lambda: peers.plain(lambda: mask),
            }
            if "flex" in compared_with:
                makers["flex"] = lambda: peers.flex(causal, T, device, rebuild=False)
            else:
                absent["flex"] = "no target of this claim names it, and it takes a compilation"
            if shortest == T:
                makers["compiled"] = lambda: peers.compiled(peers.plain(lambda: mask))
            else:
                absent["compiled"] = f"compiled for T={shortest} only: each length takes its own compilation"
            return makers

        return attention_problem(kind, sizes, T, sizes.heads, E, device, [(0, T)], functions, absent=absent)

    return ContestRow(
        id=id, variant=f"T={T}", unit="TFLOP/s", flops=flops,
        bytes=touched * (1 if kind == "forward" else 2), build=build,
    )  # fmt: skip


def _packed(sizes: Sizes) -> ContestRow:
    T, E = sizes.tokens, 128
    spans = documents(T, sizes.mean_document)
    flops = 3.5 * 4 * sum((e - s) ** 2 for s, e in spans) / 2 * sizes.heads * E

    def build(device: torch.device) -> Contest:
        ends = [0, *(e for _, e in spans)]
        cu = torch.tensor(ends, dtype=torch.int32, device=device)
        longest = max(e - s for s, e in spans)
        of = torch.repeat_interleave(torch.arange(len(spans), device=device), cu.diff().long())

        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (of[q] == of[k])

        def whole() -> Tensor:
            return (of[:, None] == of[None, :]).tril()

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flash_attention(q[0], k[0], v[0], cu_seqlens=cu, backend="triton")[None]

        def functions(_: Tensor) -> Makers:
            return {
                "ours": lambda: ours,
                "flex": lambda: peers.flex(mask, T, device, rebuild=True),
                "flex, mask kept": lambda: peers.flex(mask, T, device, rebuild=False),
                "varlen": lambda: peers.varlen(cu, longest),
                "fa4": lambda: peers.flash4_varlen(cu, longest),
                "eager": lambda: peers.plain(whole),
                "compiled": lambda: peers.compiled(peers.plain(whole)),
            }

        absent = dict.fromkeys(("flash", "cudnn"), "torch's SDPA has no document mask; see varlen")
        return attention_problem("both", sizes, T, sizes.heads, E, device, spans, functions, absent=absent)

    touched = 6 * T * (sizes.heads + sizes.kv_heads) * E * sizes.dtype.itemsize
    return ContestRow(
        id="packed documents fwd+bwd", variant="", unit="TFLOP/s", flops=flops, bytes=touched, build=build
    )


def _window(kind: str, sizes: Sizes) -> ContestRow:
    T, E, heads, W = sizes.window_length, 64, 2 * sizes.heads, sizes.window
    pairs = max(1, sizes.tokens // T) * heads * sum(min(W, i + 1) for i in range(T))
    flops = 4 * pairs * E * {"forward": 1.0, "backward": 2.5}[kind]

    def build(device: torch.device) -> Contest:
        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k < W)

        band = torch.ones(T, T, dtype=torch.bool, device=device).tril().triu(1 - W)

        def functions(sinks: Tensor) -> Makers:
            return {
                "ours": lambda: lambda q, k, v: flash_attention(q, k, v, window=W, sinks=sinks, backend="triton"),
                "flex": lambda: peers.flex(mask, T, device, rebuild=False, sinks=sinks),
                "eager": lambda: peers.plain(lambda: band, sinks=sinks),
                "compiled": lambda: peers.compiled(peers.plain(lambda: band, sinks=sinks)),
            }

        absent = dict.fromkeys(("flash", "cudnn"), "torch's SDPA has neither a sliding window nor sinks")
        absent["varlen"] = "varlen_attn has no sinks, and its LSE no gradient to add them with"
        return attention_problem(
            kind, sizes, T, heads, E, device, [(0, T)], functions,
            window=W, with_sinks=True, absent=absent,
        )  # fmt: skip

    touched = 2 * sizes.tokens * (heads + sizes.kv_heads) * E * sizes.dtype.itemsize
    return ContestRow(
        id="window 1024 + sinks, E=64", variant=f"{kind} T={T}", unit="TFLOP/s", flops=flops,
        bytes=touched * (1 if kind == "forward" else 2), build=build,
    )  # fmt: skip


def attention_rows(sizes: Sizes) -> list[ContestRow]:
    """Every attention row, in the order of the claims."""
    rows = [_dense("forward", "forward causal E=128", 128, T, sizes) for T in sizes.lengths]
    rows += [_dense("forward", "forward causal E=64", 64, T, sizes) for T in sizes.lengths]
    rows += [_dense("backward", "backward causal E=128, deterministic", 128, T, sizes) for T in sizes.lengths]
    return [*rows, _packed(sizes), _window("forward", sizes), _window("backward", sizes)]
