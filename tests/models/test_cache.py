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


@torch.no_grad()
def test_prompts_follow_cached_tokens_of_copied_rows() -> None:
    """A prefix in a row is copied into another, and texts of two lengths are read behind it; a row stays idle."""
    model = small(max_seq_len=256, num_kv_heads=1)
    prefix, texts = tokens(70, seed=1), [tokens(9, seed=2), tokens(3, seed=3)]
    cache = KVCache(model.config, 3, 128, dtype=torch.float32, device="cpu")
    cache.padding = 4
    model(prefix[None], cu_seqlens=torch.tensor([0, 70], dtype=torch.int32), cache=cache.at([2]))
    cache.copy(2, 0, 70)
    joined = torch.cat((*texts, tokens(4)))[None]  # the last four are padding
    hidden = model(joined, cu_seqlens=torch.tensor([0, 9, 12], dtype=torch.int32), cache=cache.at([0, 2]))
    cache.idle = {1}
    following = tokens(4, 1, seed=4)
    stepped = model(following, cache=cache)
    assert cache.lengths == [80, 0, 74]
    for row, text, begin in ((0, texts[0], 0), (2, texts[1], 9)):
        whole = torch.cat((prefix, text, following[row]))[None]
        wanted = model(whole)[0]
        torch.testing.assert_close(hidden[0, begin : begin + len(text)], wanted[70:-1], **CLOSE)
        torch.testing.assert_close(stepped[row, 0], wanted[-1], **CLOSE)
    cache.keep([2, 1])
    again = model(following[[2, 1, 0, 0]], cache=cache)
    assert cache.lengths == [75, 0]
    wanted = model(torch.cat((prefix, texts[1], following[2], following[2]))[None])[0, -1]
    torch.testing.assert_close(again[0, 0], wanted, **CLOSE)
