"""Choices for a call of attention: tiles from a tuning table, and torch's own kernels on a GPU."""

import pytest
import torch
from fmscale.kernels import dispatch, flash_attention
from fmscale.kernels.attention.configs import case, chosen, configs
from fmscale.kernels.attention.eager import fused_refusal
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
    for name, mine, eager, gold in zip(names, run("sdpa", inputs), run("eager", inputs), golden, strict=True):
        if dtype == BF16:
            check(mine, eager, gold, name=name)
        else:  # torch may round fp32 products to TF32
            torch.testing.assert_close(mine.double(), gold, rtol=0.0, atol=2e-2 * float(gold.abs().max()))
