"""Small models for tests, and rows of several documents."""

from typing import Any

import torch
from fmscale.kernels import document_positions
from torch import Tensor

from fmscale.config import ModelConfig
from fmscale.models import Decoder, build

VOCAB = 101
GEMMA: dict[str, Any] = {
    "norm_offset": 1.0, "post_norms": True, "qk_norm": True, "qkv_bias": True, "query_scalar": 3,
    "activation": "gelu_tanh", "embedding_scale": 32**0.5, "window": 4, "global_layers": (1,),
    "local_rope_theta": 100.0, "softcap": 5.0, "logit_softcap": 8.0, "tied": True,
}  # fmt: skip
"""All that Qwen and Gemma add to a Llama, together."""


def small(**changes: Any) -> Decoder:
    """A model of some thousand weights, ten times the initial size, so that its output depends on all input."""
    numbers = {
        "num_layers": 2,
        "dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_seq_len": 64,
        "init_std": 0.2,
    }
    model = build(ModelConfig(**{**numbers, **changes}), vocab_size=VOCAB)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids."""
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def packed(*documents: Tensor) -> dict[str, Tensor]:
    """Arguments of the model for documents packed into one row."""
    lengths = torch.tensor([len(document) for document in documents])
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).to(torch.int32)
    joined = torch.cat(documents)[None]
    positions = document_positions(cu_seqlens, joined.shape[1])[None]
    return {"tokens_BT": joined, "cu_seqlens": cu_seqlens, "positions_BT": positions}
