"""The decoder on a GPU, in bf16 and with the kernels that `auto` takes there, beside fp32 on the CPU."""

from typing import Any

import pytest
import torch

from fmscale.infer import Sampling, generate
from fmscale.models import Decoder
from fmscale.models.cache import KVCache
from tests.models.models import GEMMA, packed, small, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KIND: dict[str, Any] = {"dim": 256, "head_dim": 64, "num_layers": 3, "init_std": 0.06, "max_seq_len": 512}
KINDS = [KIND, {**KIND, **GEMMA, "embedding_scale": 16.0, "query_scalar": 20, "window": 50}]


def documents(device: str) -> dict[str, torch.Tensor]:
    made = packed(tokens(70), tokens(3, seed=1), tokens(183, seed=2))
    return {name: tensor.to(device) for name, tensor in made.items()}


def run(model: Decoder, device: str) -> tuple[float, dict[str, torch.Tensor]]:
    labels = tokens(1, 256, seed=3).to(device)
    total, count, _ = model.head(model(**documents(device)), labels=labels)
    (total / count).backward()
    grads = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return float(total / count), grads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_in_bf16_are_near_those_in_fp32(compiled: bool, kind: dict[str, Any]) -> None:
    """Each gradient as a vector: bf16 rounds at 2**-9, and some tens of roundings lie between."""
    loss, grads = run(small(**kind), "cpu")
    model = small(**kind).to("cuda", torch.bfloat16)
    if compiled:
        for block in model.layers:
            block.compile(fullgraph=True)
    bf16_loss, bf16_grads = run(model, "cuda")
    assert bf16_loss == pytest.approx(loss, rel=0.01)
    for name, wanted in grads.items():
        assert (bf16_grads[name] - wanted).norm() < 0.05 * wanted.norm(), name


@torch.no_grad()
def test_documents_do_not_see_each_other() -> None:
    model = small(**KIND).to("cuda", torch.bfloat16)
    first = model(**documents("cuda"))[0, 73:]
    changed = documents("cuda")
    changed["tokens_BT"][0, :73] = tokens(73, seed=9).to("cuda")
    assert torch.equal(model(**changed)[0, 73:], first)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_logits_are_near_those_without_a_cache_on_the_cpu(kind: dict[str, Any]) -> None:
    lengths, following = (17, 1, 60), tokens(3, 30, seed=7)
    prompts = packed(*(tokens(length, seed=length) for length in lengths))
    model = small(**kind).to("cuda", torch.bfloat16)
    cache = KVCache(model.config, 3, 90, dtype=torch.bfloat16, device="cuda")
    model(prompts["tokens_BT"].to("cuda"), cu_seqlens=prompts["cu_seqlens"].to("cuda"), cache=cache)
    steps = [model.head(model(following[:, t : t + 1].to("cuda"), cache=cache)) for t in range(30)]
    cached = torch.cat(steps, 1).float().cpu()
    exact = small(**kind)
    for i, length in enumerate(lengths):
        whole = torch.cat((tokens(length, seed=length), following[i]))[None]
        wanted = exact.head(exact(whole))[0, length:]
        assert (cached[i] - wanted).norm() < 0.05 * wanted.norm()


def test_generation_ends_by_itself_on_a_gpu() -> None:
    prompts = [tokens(length, seed=length).tolist() for length in (17, 1, 60)]
    model = small(**KIND).to("cuda", torch.bfloat16)
    found = generate(model, prompts, max_tokens=40, sampling=Sampling(temperature=1.0, seed=1), eos=5)
    for one in found:
        assert (one.stop == "length") == (len(one.tokens) == 40)
        assert 5 not in one.tokens
