"""Decoding from a cache against fp64, and against attention over the same tokens."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fmscale.kernels import attention_decode, flash_attention
from fmscale.kernels.attention.decode import spans_of
from fmscale.kernels.dispatch import forced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmscale.errors import KernelError
from tests.kernels.attention.attention_problems import largest_score, pairwise
from tests.kernels.policy import check

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = {"BLOCK_N": 16, "num_warps": 4, "num_stages": 2}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of attention_decode."""

    lengths: tuple[int, ...] = (300, 0, 1, 257)
    S: int = 300
    T: int = 1
    heads: tuple[int, int] = (4, 2)
    E: int = 32
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def tensors(self, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """q and the caches, the lengths, the sinks."""
        torch.manual_seed(3)
        B, (H, K) = len(self.lengths), self.heads
        shapes = [(B, self.T, H, self.E), *[(B, self.S, K, self.E)] * 2]
        found = [torch.randn(shape).to(device, self.dtype) for shape in shapes]
        sinks = torch.randn(H).to(device, self.dtype) if self.sinks else None
        return found, torch.tensor(self.lengths, device=device), sinks

    def run(self, tensors: list[Tensor], lengths: Tensor, sinks: Tensor | None, backend: str) -> Any:
        """(output, log-sum-exp)."""
        q, k, v = tensors
        return attention_decode(
            q, k, v, lengths, window=self.window, softcap=self.softcap, sinks=sinks, return_lse=True,
            backend=backend,
        )  # fmt: skip


def judge(call: Call, device: torch.device, *, small: bool = False) -> None:
    """Triton as near to fp64 as `policy` asks, with NaN past the lengths. small: perhaps a row or two."""
    tensors, lengths, sinks = call.tensors(device)
    for cache in tensors[1:]:
        for b, length in enumerate(call.lengths):
            cache[b, length:] = torch.nan
    ours = call.run(tensors, lengths, sinks, "triton")
    same = call.run(tensors, lengths, sinks, "eager")
    wide = None if sinks is None else sinks.double()
    golden = call.run([one.double() for one in tensors], lengths, wide, "eager")
    for name, mine, eager, gold in zip(("out", "lse"), ours, same, golden, strict=True):
        terms = None
        if small and name == "lse":
            terms = largest_score(tensors[0].double(), tensors[1].double().nan_to_num(), call.E**-0.5)
        check(mine, eager, gold, name=name, terms=terms)


CASES = [
    Call(**case)
    for case in pairwise(
        {
            "T": [1, 3], "heads": [(4, 4), (6, 2), (4, 1)], "E": [32, 40, 64], "dtype": DTYPES,
            "window": [None, 5, 280], "softcap": [None, 3.0], "sinks": [False, True],
        }
    )
]  # fmt: skip


@pytest.mark.parametrize("call", CASES, ids=lambda c: str(dataclasses.astuple(c)[2:]))
def test_every_pair_of_features(call: Call, device: torch.device) -> None:
    judge(call, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("E", [80, 128, 256])
def test_wide_heads(E: int, dtype: torch.dtype, device: torch.device) -> None:
    judge(Call(E=E, dtype=dtype, lengths=(90, 33), S=96, sinks=True), device)


def test_more_rows_than_a_tile(device: torch.device) -> None:
    judge(Call(T=50, heads=(4, 2), lengths=(70, 300, 12)), device)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 600), min_size=1, max_size=3), S=st.integers(1, 600), T=st.integers(1, 4),
    window=st.none() | st.integers(1, 600), sinks=st.booleans(),
)  # fmt: skip
def test_any_lengths(device: torch.device, lengths: list[int], S: int, T: int, window: int | None, sinks: bool) -> None:
    """Lengths below the number of new tokens, and beyond the capacity."""
    judge(Call(lengths=tuple(lengths), S=S, T=T, window=window, sinks=sinks, heads=(2, 1)), device, small=True)


def test_matches_attention(device: torch.device) -> None:
    """Token by token, from an empty cache, as a model generates: the rows of one causal pass."""
    T, H, K, E = 20, 4, 2, 32
    q, k, v = (torch.randn(2, T, heads, E, device=device) for heads in (H, K, K))
    sinks = torch.randn(H, device=device)
    wanted, wanted_lse = flash_attention(q, k, v, window=7, sinks=sinks, return_lse=True, backend="eager")
    caches = [torch.full((2, 32, K, E), torch.nan, device=device) for _ in range(2)]
    for t in range(T):
        caches[0][:, t], caches[1][:, t] = k[:, t], v[:, t]
        lengths = torch.full((2,), t + 1, device=device, dtype=torch.int32)
        out, lse = attention_decode(
            q[:, t], caches[0], caches[1], lengths, window=7, sinks=sinks, return_lse=True, backend="triton"
        )
        torch.testing.assert_close(out, wanted[:, t])
        torch.testing.assert_close(lse, wanted_lse[:, :, t])


def test_transposed_caches_are_read_in_place(device: torch.device) -> None:
    call = Call()
    tensors, lengths, _ = call.tensors(device)
    turned = [tensors[0], *(one.transpose(1, 2).contiguous().transpose(1, 2) for one in tensors[1:])]
    for a, b in zip(call.run(turned, lengths, None, "triton"), call.run(tensors, lengths, None, "triton"), strict=True):
        assert torch.equal(a, b)
    copied: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            copied.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        call.run(turned, lengths, None, "triton")
    assert not [name for name in copied if "clone" in name or "copy" in name]


def test_a_sequence_decodes_the_same_in_any_batch(device: torch.device) -> None:
    """The split depends only on the capacity; from 16384 keys on a dependence on the batch would show."""
    call = Call(S=6000, lengths=(700, 4, 6000), heads=(1, 1), E=8, sinks=True)
    assert spans_of(6000, 64) != spans_of(3 * 6000, 64)
    tensors, lengths, sinks = call.tensors(device)
    whole = call.run(tensors, lengths, sinks, "triton")
    for b in range(3):
        alone = call.run([one[b : b + 1] for one in tensors], lengths[b : b + 1], sinks, "triton")
        assert all(torch.equal(x[b : b + 1], y) for x, y in zip(whole, alone, strict=True))


def test_what_no_window_reaches_is_not_read(device: torch.device) -> None:
    """A long cache costs only a window's tiles: the window begins at key 230."""
    call = Call(lengths=(250,), window=20)
    tensors, lengths, _ = call.tensors(device)
    wanted = call.run(tensors, lengths, None, "triton")
    for cache in tensors[1:]:
        cache[:, :192] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(call.run(tensors, lengths, None, "triton"), wanted, strict=True))


def test_splitting_is_a_matter_of_speed(device: torch.device) -> None:
    assert spans_of(300, 64) == (256, 2)
    assert spans_of(2**17, 64) == (2048, 64)
    assert spans_of(70000, 128) == (1152, 61)
    with forced("attention_decode", "span", SMALL):
        judge(Call(S=700, lengths=(700, 513), window=300), device)


def test_registration(device: torch.device) -> None:
    tensors, lengths, sinks = Call(sinks=True).tensors(device)
    torch.library.opcheck(torch.ops.fmscale.attention_decode.default, (*tensors, lengths, sinks, 9, 2.0, 0.2, 0))
    torch.library.opcheck(torch.ops.fmscale.attention_decode.default, (*tensors, lengths, None, 0, 0.0, 0.2, 0))


def test_compiles_whole(device: torch.device) -> None:
    (q, k, v), lengths, _ = Call().tensors(device)
    for backend, compiler in (("triton", "aot_eager"), ("eager", "eager")):
        compiled = torch.compile(attention_decode, fullgraph=True, backend=compiler, dynamic=True)
        plain = attention_decode(q, k, v, lengths, backend=backend)
        torch.testing.assert_close(compiled(q, k, v, lengths, backend=backend), plain)


def test_errors_name_what_to_do(device: torch.device) -> None:
    (q, k, v), lengths, _ = Call().tensors(device)
    with pytest.raises(KernelError, match=r"transpose\(1, 2\)"):
        attention_decode(q, k.transpose(1, 2), v.transpose(1, 2), lengths)
    with pytest.raises(KernelError, match="differ in dtype"):
        attention_decode(q.half(), k, v, lengths)
    with pytest.raises(KernelError, match="lengths must be"):
        attention_decode(q, k, v, lengths[:1])
    with pytest.raises(KernelError, match="window must be positive"):
        attention_decode(q, k, v, lengths, window=0)
    with pytest.raises(KernelError, match="no gradient"):
        attention_decode(q.requires_grad_(), k, v, lengths)
    with torch.no_grad():
        attention_decode(q, k, v, lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("E", [64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes(E: int, dtype: torch.dtype, device: torch.device) -> None:
    judge(Call(E=E, dtype=dtype, S=16384, lengths=(16384, 1, 9000, 127), heads=(32, 8), sinks=True), device)
    judge(Call(E=E, dtype=dtype, S=16384, lengths=(16384, 300), heads=(32, 8), T=4, window=1024), device)


@pytest.mark.gpu
def test_repeats_bit_for_bit(device: torch.device) -> None:
    call = Call(E=128, dtype=torch.bfloat16, S=16384, lengths=(16384, 9000), heads=(32, 8))
    tensors, lengths, _ = call.tensors(device)
    first = call.run(tensors, lengths, None, "triton")
    for _ in range(1000):
        assert all(torch.equal(a, b) for a, b in zip(call.run(tensors, lengths, None, "triton"), first, strict=True))


def test_a_named_capacity_gives_caches_of_all_sizes_the_same_bits(device: torch.device) -> None:
    """Above 16,384 keys the spans grow: without a common capacity 20,000 keys would be cut in other places."""
    torch.manual_seed(5)
    E, length = 16, 300
    q, k, v = (torch.randn(1, n, 1, E, device=device) for n in (1, 512, 512))
    lengths = torch.tensor([length], device=device)
    cut = attention_decode(q, k, v, lengths, capacity=40_000, backend="triton")
    k, v = (torch.cat((x, torch.zeros(1, 30_000 - 512, 1, E, device=device)), 1) for x in (k, v))
    assert torch.equal(attention_decode(q, k, v, lengths, capacity=40_000, backend="triton"), cut)
    assert spans_of(40_000, 64) != spans_of(512, 64)
