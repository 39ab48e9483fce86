"""A flat forward gives the loss and the gradients of its samples alone: texts, and rows with several documents."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fmscale.config import ModelConfig, SourceConfig
from fmscale.data.forward import FlatForward
from fmscale.models import Decoder, build
from fmscale.objectives import NextToken
from fmscale.store.backends.protocol import Backend
from tests.data.test_flat_loader import TEXT, flat, take, text_dataset
from tests.helpers.segments import documents, write_commit

LONGEST = 256
VOCAB = 259
WITHIN = {torch.float32: 1e-6, torch.float64: 1e-12}


def mixed(store: Backend) -> list[FlatForward]:
    """The forwards of a step: texts, and rows of 65 tokens with the ends of several documents."""
    text_dataset(store, counts=(80,))
    short = documents([3, 40, 1, 1, 90, 7, 22, 64, 65, 66, 2, 30] * 6)
    small_ids = [replace(doc, tokens=doc.tokens % 256) for doc in short]
    write_commit(store, "rows", {"train": [small_ids]}, tokenizer=b'{"type":"other"}')
    sources = [SourceConfig(dataset="texts", weight=2, spec=TEXT), SourceConfig(dataset="rows", weight=1)]
    options: dict[str, Any] = {"dataset": None, "sources": sources, "spec": None, "sequence_length": 65}
    [step] = take(flat(store, forward_tokens=1536, sample_tokens=LONGEST, batch=48, **options), 1)
    return step


def model_of(backend: str) -> Decoder:
    shape: dict[str, Any] = {
        "num_layers": 2,
        "dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "init_std": 0.2,
        "attention_backend": backend,
    }
    model = build(ModelConfig(**shape, max_seq_len=LONGEST), vocab_size=VOCAB)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def gradients(model: Decoder, forwards: list[FlatForward]) -> tuple[float, float, torch.Tensor]:
    """Loss, count, and all gradients as one vector, in fp64."""
    model.zero_grad()
    total = count = 0.0
    for forward in forwards:
        inputs = NextToken().collate(forward)
        weights = inputs.weights.to(next(model.parameters()).dtype)
        loss = NextToken()(model, replace(inputs, weights=weights))
        loss.sum.backward()
        total, count = total + loss.sum.item(), count + loss.count.item()
    vector = [p.grad.double().flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return total, count, torch.cat(vector)


def alone(forward: FlatForward) -> list[FlatForward]:
    """Each document of a forward as a forward of its own, without padding."""
    out = []
    ends, stop = forward.cu_seqlens.tolist(), int(forward.bounds[-1])
    for begin, end in pairwise(ends):
        if begin < stop:
            out.append(
                replace(
                    forward,
                    parts={name: part[:, begin:end] for name, part in forward.parts.items()},
                    weights=forward.weights[:, begin:end],
                    positions=torch.arange(end - begin)[None],
                    cu_seqlens=torch.tensor([0, end - begin], dtype=torch.int32),
                    bounds=torch.tensor([0, end - begin]),
                    sample_source=forward.sample_source[:1],
                )
            )
    return out


@pytest.mark.parametrize(
    ("backend", "dtype"), [("eager", torch.float32), ("sdpa", torch.float32), ("sdpa", torch.float64)]
)
def test_packed_forwards_equal_each_document_alone_in_fp64(
    memory_store: Backend, backend: str, dtype: torch.dtype
) -> None:
    step = mixed(memory_store)
    assert any(len(forward.cu_seqlens) > len(forward.bounds) + 3 for forward in step), "documents inside rows"
    wanted, weight, vector = gradients(model_of("eager").double(), [one for f in step for one in alone(f)])
    total, count, found = gradients(model_of(backend).to(dtype), step)
    assert count == weight
    assert abs(total - wanted) / abs(wanted) <= WITHIN[dtype]
    assert float((found - vector).norm() / vector.norm()) <= WITHIN[dtype]
