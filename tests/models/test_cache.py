from typing import Any

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.models import Decoder
from fmscale.models.cache import KVCache
from tests.models.models import packed, small, tokens

KINDS = [
    {},
    {"window": 3},
    {"softcap": 5.0, "num_kv_heads": None},
    {"attention_backend": "eager", "tied": True},
    {"window": 3, "global_layers": (1,), "local_rope_theta": 50.0, "qk_norm": True, "query_scalar": 3},
]
PROMPTS = (5, 1, 9)
CLOSE: dict[str, Any] = {"atol": 3e-5, "rtol": 1e-5}


def read(model: Decoder, capacity: int) -> tuple[KVCache, torch.Tensor]:
    """Prompts of different lengths in a cache, and the logits of their tokens."""
    cache = KVCache(model.config, len(PROMPTS), capacity, dtype=torch.float32, device="cpu")
    arguments = packed(*(tokens(length, seed=length) for length in PROMPTS))
    arguments.pop("positions_BT")
    return cache, model.head(model(**arguments, cache=cache))[0]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_logits_are_those_without_a_cache(kind: dict[str, int]) -> None:
    model = small(**kind)
    cache, prompt_logits = read(model, 16)
    following = tokens(len(PROMPTS), 7, seed=20)
    parts = [model.head(model(following[:, a:b], cache=cache)) for a, b in ((0, 1), (1, 2), (2, 6), (6, 7))]
    logits = torch.cat(parts, 1)
    assert cache.lengths == [length + 7 for length in PROMPTS]
    ends = torch.tensor(PROMPTS).cumsum(0).tolist()
    for i, (length, end) in enumerate(zip(PROMPTS, ends, strict=True)):
        whole = torch.cat((tokens(length, seed=length), following[i]))
        wanted = model.head(model(whole[None]))[0]
        torch.testing.assert_close(prompt_logits[end - length : end], wanted[:length], **CLOSE)
        torch.testing.assert_close(logits[i], wanted[length:], **CLOSE)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    model = small()
    with pytest.raises(ConfigError, match="do not fit") as refused:
        read(model, 8)
    assert refused.value.found == "9 of 8"
    cache, _ = read(model, 10)
    model(tokens(3, 1), cache=cache)
    with pytest.raises(ConfigError, match="do not fit"):
        model(tokens(3, 1), cache=cache)
    with pytest.raises(ConfigError, match="number of sequences"):
        model(tokens(2, 1), cache=cache)
    with pytest.raises(ConfigError, match="as many rows"):
        model(tokens(1, 3), cu_seqlens=torch.tensor([0, 1, 2], dtype=torch.int32), cache=cache)
