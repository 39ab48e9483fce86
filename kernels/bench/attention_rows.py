"""The attention rows: shapes and operation counts of `targets.md`."""

import random
from collections.abc import Callable

import torch
from fmscale.kernels import attention
from fmscale.kernels.bench import peers
from fmscale.kernels.bench.contest import (
    Contest,
    Contestant,
    Row,
    backward_of,
    both_of,
    forward_of,
)
from fmscale.kernels.bench.sizes import Sizes
from torch import Tensor


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


def _problem(
    kind: str, sizes: Sizes, T: int, heads: int, E: int, device: torch.device,
    spans: list[tuple[int, int]], window: int | None, with_sinks: bool,
    functions: Callable[[Tensor | None], dict[str, Callable[[], peers.Attention]]],
) -> Contest:  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)

    def random_(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(sizes.dtype)

    B, group = max(1, sizes.tokens // T), heads // sizes.kv_heads
    q, dout = random_(B, T, heads, E), random_(B, T, heads, E)
    k, v = random_(B, T, sizes.kv_heads, E), random_(B, T, sizes.kv_heads, E)
    sinks = random_(heads).float() if with_sinks else None

    def call(function: peers.Attention) -> Contestant:
        if kind == "forward":
            return forward_of(function, [q, k, v], lambda o: [o[0][0, :, :group]])
        make = backward_of if kind == "backward" else both_of
        return make(function, [q, k, v], [dout], lambda g: _first(g[-3:], group))

    def exact() -> list[Tensor]:
        leaves = [t[0, :, :n].float().requires_grad_() for t, n in ((q, group), (k, 1), (v, 1))]
        few = None if sinks is None else sinks[:group]
        out = reference(leaves[0], leaves[1], leaves[2], spans, window=window, sinks=few)
        if kind == "forward":
            return [out.detach()]
        return list(torch.autograd.grad(out, leaves, dout[0, :, :group].float()))

    makers = {name: lambda build=build: call(build()) for name, build in functions(sinks).items()}
    return Contest(makers=makers, reference=exact)


def _first(gradients: list[Tensor], group: int) -> list[Tensor]:
    return [g[0, :, :n] for g, n in zip(gradients, (group, 1, 1), strict=True)]


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """FlexAttention's causal mask."""
    return q >= k


def _dense(kind: str, id: str, E: int, T: int, sizes: Sizes) -> Row:
    pairs = max(1, sizes.tokens // T) * sizes.heads * T * T / 2
    flops = 4 * pairs * E * {"forward": 1.0, "backward": 2.5}[kind]
    touched = 2 * sizes.tokens * (sizes.heads + sizes.kv_heads) * E * sizes.dtype.itemsize

    def build(device: torch.device) -> Contest:
        def functions(sinks: Tensor | None) -> dict[str, Callable[[], peers.Attention]]:
            return {
                "ours": lambda: lambda q, k, v: attention(q, k, v, backend="triton"),
                "flash": lambda: peers.sdpa("FLASH_ATTENTION", causal=True),
                "cudnn": lambda: peers.sdpa("CUDNN_ATTENTION", causal=True),
                "flex": lambda: peers.flex(causal, T, device, rebuild=False),
                "fa4": lambda: peers.flash4(causal=True),
            }

        return _problem(kind, sizes, T, sizes.heads, E, device, [(0, T)], None, False, functions)

    return Row(
        id=id, variant=f"T={T}", unit="TFLOP/s", flops=flops,
        bytes=touched * (1 if kind == "forward" else 2), build=build,
    )  # fmt: skip


def _packed(sizes: Sizes) -> Row:
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

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q[0], k[0], v[0], cu_seqlens=cu, backend="triton")[None]

        def functions(sinks: Tensor | None) -> dict[str, Callable[[], peers.Attention]]:
            return {
                "ours": lambda: ours,
                "flex": lambda: peers.flex(mask, T, device, rebuild=True),
                "flex, mask kept": lambda: peers.flex(mask, T, device, rebuild=False),
                "varlen": lambda: peers.varlen(cu, longest),
            }

        return _problem("both", sizes, T, sizes.heads, E, device, spans, None, False, functions)

    touched = 6 * T * (sizes.heads + sizes.kv_heads) * E * sizes.dtype.itemsize
    return Row(
        id="packed documents fwd+bwd", variant="", unit="TFLOP/s", flops=flops, bytes=touched, build=build
    )


def _window(kind: str, sizes: Sizes) -> Row:
    T, E, heads, W = sizes.window_length, 64, 2 * sizes.heads, sizes.window
    pairs = max(1, sizes.tokens // T) * heads * sum(min(W, i + 1) for i in range(T))
    flops = 4 * pairs * E * {"forward": 1.0, "backward": 2.5}[kind]

    def build(device: torch.device) -> Contest:
        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k < W)

        def cudnn() -> peers.Attention:
            raise NotImplementedError("torch's SDPA has neither a sliding window nor sinks")

        def functions(sinks: Tensor | None) -> dict[str, Callable[[], peers.Attention]]:
            return {
                "ours": lambda: lambda q, k, v: attention(q, k, v, window=W, sinks=sinks, backend="triton"),
                "flex": lambda: peers.flex(mask, T, device, rebuild=False, sinks=sinks),
                "cudnn": cudnn,
            }

        return _problem(kind, sizes, T, heads, E, device, [(0, T)], W, True, functions)

    touched = 2 * sizes.tokens * (heads + sizes.kv_heads) * E * sizes.dtype.itemsize
    return Row(
        id="window 1024 + sinks, E=64", variant=f"{kind} T={T}", unit="TFLOP/s", flops=flops,
        bytes=touched * (1 if kind == "forward" else 2), build=build,
    )  # fmt: skip


def attention_rows(sizes: Sizes) -> list[Row]:
    """Every attention row, the claims' order."""
    rows = [_dense("forward", "forward causal E=128", 128, T, sizes) for T in sizes.lengths]
    rows += [_dense("forward", "forward causal E=64", 64, T, sizes) for T in sizes.lengths]
    rows += [_dense("backward", "backward causal E=128, deterministic", 128, T, sizes) for T in sizes.lengths]
    return [*rows, _packed(sizes), _window("forward", sizes), _window("backward", sizes)]
