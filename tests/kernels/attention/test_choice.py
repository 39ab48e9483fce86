"""Choices for a call of attention: tiles from a tuning table, and torch's own kernels on a GPU."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fmscale.kernels import dispatch, flash_attention
from fmscale.kernels.attention import op
from fmscale.kernels.attention.configs import case, chosen, configs
from fmscale.kernels.attention.eager import eager, fused_refusal
from fmscale.kernels.attention.varlen import varlen
from fmscale.kernels.dispatch import Config, TunedEntry, TunedTable, use_table
from fmscale.kernels.launch import TRITON_VERSION
from torch._subclasses.fake_tensor import FakeTensorMode

from fmscale.errors import KernelError
from tests.kernels.policy import check, gradients

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
LIGHT, HEAVY = (configs(BF16, 128, heavy=heavy)["forward"] for heavy in (False, True))
WIDE = next(one for one in LIGHT if one not in HEAVY)
"""A tile that is allowed for a head dim of 128, but not for a padded head dim: it spills."""


def bucket_of(E: int) -> str:
    return case(BF16, E, documents=False, causal=True, window=False, softcap=False, sinks=False)


def forward_launch(E: int) -> Config:
    return chosen("forward", torch.empty(1, 4, 1, E, dtype=BF16), None, None, causal=True, window=0, softcap=0.0)


@pytest.mark.parametrize("of", [128, 96])
def test_a_padded_head_dim_gets_no_tile_of_the_wider_one(of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile comes from the entry of E=128, or from its own entry."""
    for name in ("_tables", "_entries"):
        monkeypatch.setattr(dispatch, name, {})
    monkeypatch.setattr(dispatch, "_ignored", set())
    entry = TunedEntry(op="attention", bucket=bucket_of(of), backend="eager", configs={"forward": WIDE})
    use_table(TunedTable(gpu="cpu", triton=TRITON_VERSION, entries=(entry,)))
    assert forward_launch(96) == HEAVY[0]
    assert forward_launch(128) == (WIDE if of == 128 else LIGHT[0])


@pytest.mark.parametrize(
    ("dtype", "E", "grouped", "refused"),
    [
        (BF16, 64, True, None),
        (FP16, 100, True, None),  # torch pads it for flash
        (FP16, 256, True, None),
        (BF16, 264, True, "a head dim of 264 and grouped heads"),
        (BF16, 264, False, None),
        (BF16, 260, False, "520 bytes a row"),
        (FP32, 64, False, None),
        (FP32, 512, False, None),
        (FP32, 66, False, "264 bytes a row"),
        (FP32, 64, True, "float32 and grouped heads"),
        (FP64, 64, False, "float64"),
    ],
)
def test_sdpa_on_a_gpu_refuses_what_torch_cannot_do(
    dtype: torch.dtype, E: int, grouped: bool, refused: str | None
) -> None:
    """This error comes before torch's, which names no alternative."""
    said = fused_refusal(dtype, E, grouped=grouped)
    assert (said is None) == (refused is None)
    assert refused is None or refused in str(said)
    if refused is None:
        return
    with FakeTensorMode():  # a GPU's tensors without a GPU
        q, k = (torch.empty(1, 8, heads, E, dtype=dtype, device="cuda") for heads in (4, 2 if grouped else 4))
        with pytest.raises(KernelError, match=rf'backend "sdpa".*{refused}.*Use backend=.(triton|eager)'):
            flash_attention(q, k, k, backend="sdpa")


def test_sdpa_on_a_gpu_refuses_where_torch_is_asked_for_determinism() -> None:
    with FakeTensorMode():
        q = torch.empty(1, 8, 4, 64, dtype=BF16, device="cuda")
        torch.use_deterministic_algorithms(True)
        try:
            with pytest.raises(KernelError, match=r"its backward is not deterministic.*Use backend="):
                flash_attention(q, q, q, backend="sdpa")
        finally:
            torch.use_deterministic_algorithms(False)


class Asked(Exception):
    """Raised in place of choosing a backend, with the refusals."""


def refusals(monkeypatch: pytest.MonkeyPatch, *, E: int = 64, dtype: torch.dtype = BF16, **options: Any) -> Any:
    """Refusals of a call with documents on a GPU."""

    def spy(op: str, backend: str, device: torch.device, case: str, refusals: Mapping[str, str | None]) -> str:
        raise Asked(refusals)

    with FakeTensorMode(), monkeypatch.context() as patched:
        patched.setattr(op, "choose", spy)
        q, k = (torch.empty(64, heads, E, dtype=dtype, device="cuda") for heads in (4, 2))
        cu = torch.empty(4, dtype=torch.int32, device="cuda")
        given: dict[str, Any] = {name: cu if value is ... else value for name, value in options.items()}
        with pytest.raises(Asked) as asked:
            flash_attention(q, k, k, cu_seqlens=cu, **given)
    return asked.value.args[0]


def test_documents_on_a_gpu_fall_back_to_varlen_and_not_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton cannot serve a call, memory stays linear in the tokens."""
    monkeypatch.setattr(op, "_triton_refusal", lambda *_: "triton is not installed")
    monkeypatch.setattr(dispatch, "device_name", lambda device: "a GPU")
    found = refusals(monkeypatch, window=7)
    assert dispatch.choose("attention", "auto", torch.device("cuda"), "documents", found) == "varlen"
    with pytest.raises(KernelError, match=r'backend "triton".*triton is not installed.*Use backend=.varlen'):
        dispatch.choose("attention", "triton", torch.device("cuda"), "documents", found)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"E": 68}, "head dim of 68"),
        ({"E": 264}, "head dim of 264"),
        ({"dtype": FP32}, "float32"),
        ({"softcap": 30.0}, "a soft-cap"),
        ({"return_lse": True}, "return_lse"),
        ({"cu_seqlens_k": ...}, "keys with lengths of their own"),
    ],
    ids=str,
)
def test_varlen_refuses_what_torch_cannot_do(
    options: dict[str, Any], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused in str(refusals(monkeypatch, **options)["varlen"])


def test_varlen_is_for_a_gpu_and_not_for_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, 2, 8, dtype=BF16)
    cu = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(KernelError, match=r'backend "varlen".*CUDA devices alone.*Use backend=.(sdpa|triton|eager)'):
        flash_attention(x, x, x, cu_seqlens=cu, backend="varlen")
    torch.use_deterministic_algorithms(True)
    try:
        assert "not deterministic" in str(refusals(monkeypatch)["varlen"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert refusals(monkeypatch)["varlen"] is None


def by_documents(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """torch's varlen_attn by its documentation, on a CPU."""
    assert enable_gqa
    assert cu_q.dtype == torch.int32
    assert int(cu_q.diff().max()) <= max_q == max_k
    outs = []
    left, right = (q.shape[0] if side < 0 else side for side in window_size)
    for begin, end in zip(cu_q.tolist(), cu_k[1:].tolist(), strict=False):
        group = q.shape[1] // k.shape[1]
        keys, values = (x[begin:end].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q[begin:end], keys) * scale
        distance = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        scores = scores.masked_fill((distance > left) | (distance < -right), -torch.inf)
        outs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), values))
    return torch.cat(outs)


@pytest.mark.parametrize("cu", [[0, 5, 5, 12], [0, 5, 20], None], ids=str)
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 3), (False, 0), (False, 3)])
def test_varlen_is_called_as_torch_documents_it(
    cu: list[int] | None, causal: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds, window and scale are right, and tokens behind the last document give 0 and get no gradient."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_documents)
    shapes = [(1 if cu else 2, 20, heads, 8) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=FP64) for shape in shapes]
    offsets = torch.tensor(cu) if cu else None
    upstream = [torch.randn(shapes[0], dtype=FP64)]

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return varlen(q, k, v, offsets, causal=causal, window=window, scale=0.3)

    def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        settings: Any = {"causal": causal, "window": window, "softcap": 0.0, "sinks": None, "scale": 0.3}
        return eager(q, k, v, offsets, offsets, **settings)[0]

    for one, other in zip(gradients(ours, inputs, upstream), gradients(reference, inputs, upstream), strict=True):
        for mine, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(mine, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
def test_varlen_beside_triton_and_eager_on_a_gpu(window: int | None, device: torch.device) -> None:
    """With documents, an empty one and a tail among them, all three give the same output and gradients."""
    shapes = [(1500, heads, 128) for heads in (8, 2, 2)]
    inputs = [torch.randn(shape, device=device).to(BF16) for shape in shapes]
    upstream = [torch.randn(shapes[0], device=device).to(BF16)]
    cu = torch.tensor([0, 700, 700, 701, 1400], dtype=torch.int32, device=device)

    def run(backend: str, of: list[torch.Tensor]) -> list[torch.Tensor]:
        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return flash_attention(q, k, v, cu_seqlens=cu, window=window, backend=backend)

        outs, grads = gradients(call, of, upstream)
        return [*outs, *grads]

    golden, plain = run("eager", [one.double() for one in inputs]), run("eager", inputs)
    for backend in ("varlen", "triton"):
        for name, mine, other, gold in zip(("out", "dq", "dk", "dv"), run(backend, inputs), plain, golden, strict=True):
            check(mine, other, gold, name=f"{backend} {name}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_sdpa_on_a_gpu(dtype: torch.dtype, device: torch.device) -> None:
    """Forward and backward beside eager: torch's kernel, its layout and its scale are right."""
    kv_heads = 2 if dtype == BF16 else 8
    shapes = [(2, 1000, heads, 128) for heads in (8, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    upstream = [torch.randn(shapes[0], device=device).to(dtype)]

    def run(backend: str, of: list[torch.Tensor]) -> list[torch.Tensor]:
        outs, grads = gradients(lambda q, k, v: flash_attention(q, k, v, backend=backend), of, upstream)
        return [*outs, *grads]

    golden = run("eager", [one.double() for one in inputs])
    names = ("out", "dq", "dk", "dv")
    for name, mine, other, gold in zip(names, run("sdpa", inputs), run("eager", inputs), golden, strict=True):
        if dtype == BF16:
            check(mine, other, gold, name=name)
        else:  # torch may round fp32 products to TF32
            torch.testing.assert_close(mine.double(), gold, rtol=0.0, atol=2e-2 * float(gold.abs().max()))
