"""Changes to blocks from outside: compiled one by one, and computed again in backward."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fmscale.models import Decoder
from tests.models.models import GEMMA, packed, small, tokens


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    documents = packed(tokens(7), tokens(12, seed=1), tokens(5, seed=2))
    total, _, _ = model.head(model(**documents), labels=tokens(1, 24, seed=3))
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": total.detach()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"window": 4, "softcap": 5.0}, GEMMA])
def test_a_block_compiles_whole(kind: dict[str, Any]) -> None:
    """The documents' mask is not lost there: with unknown lengths other code makes it."""
    wanted = gradients(small(**kind))
    model = small(**kind)
    for block in model.layers:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(model), wanted, atol=1e-4, rtol=1e-4)


def test_a_block_that_is_computed_again_drops_the_same() -> None:
    model = small(dropout=0.3).train()
    wanted = gradients(model)
    for block in model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    torch.testing.assert_close(gradients(model), wanted)
    assert not torch.equal(gradients(small())["loss"], wanted["loss"])
