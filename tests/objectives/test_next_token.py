import dataclasses

import torch
from torch import Tensor

from fmscale.models import Decoder
from fmscale.objectives import Inputs, next_token
from tests.models.models import VOCAB, small

B, T = 6, 12
FILLER = 5
STARTS = {0: [0, 5], 1: [0], 2: [0, 1, 11], 3: [0, 7], 4: [0], 5: [0]}


def rows(which: slice = slice(0, B)) -> Inputs:
    """Some of six rows of documents, with a filler as the last row."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCAB, (B, T + 1), generator=generator)
    starts = torch.tensor([[t in STARTS[row] for t in range(T + 1)] for row in range(B)])
    last = torch.where(starts, torch.arange(T + 1), 0).cummax(1).values
    positions = torch.arange(T + 1) - last
    weights = (positions > 0).float()
    weights[FILLER] = 0.0
    inputs = starts[which, :T]
    begins = torch.nonzero(inputs.flatten()).flatten()
    source = torch.arange(B) % 2
    source[FILLER] = -1
    return Inputs(
        tokens_BT=text[which, :T],
        labels_BT=text[which, 1:],
        weights_BT=weights[which, 1:],
        positions_BT=positions[which, :T],
        cu_seqlens=torch.cat((begins, torch.tensor([inputs.numel()]))).to(torch.int32),
        source_B=source[which],
    )


def run(model: Decoder, parts: list[Inputs]) -> tuple[float, float, dict[str, Tensor]]:
    """Loss sum, count and gradients over several microbatches."""
    model.zero_grad()
    total = count = 0.0
    for part in parts:
        loss = next_token(model, part)
        torch.autograd.backward(loss.sum)
        total, count = total + loss.sum.item(), count + loss.count.item()
    return total, count, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_splitting_into_microbatches_leaves_loss_and_gradients() -> None:
    """fp32 cannot reach the closeness of fp64: sums in other orders differ by some 1e-7 of their terms."""
    model = small()
    whole_sum, whole_count, whole = run(model, [rows()])
    assert whole_count == sum(T - sum(s > 0 for s in STARTS[row]) for row in range(B) if row != FILLER)
    for size in (1, 2, 4):
        total, count, split = run(model, [rows(slice(i, min(i + size, B))) for i in range(0, B, size)])
        assert count == whole_count
        torch.testing.assert_close(total, whole_sum, rtol=1e-6, atol=0.0)
        assert split.keys() == whole.keys()
        for name, gradient in whole.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(split[name], gradient, rtol=0.0, atol=1e-5 * scale)


def test_fillers_weigh_nothing() -> None:
    model = small()
    with_filler, without = run(model, [rows()]), run(model, [rows(slice(0, FILLER))])
    assert with_filler[1] == without[1]
    torch.testing.assert_close(with_filler[0], without[0], rtol=1e-6, atol=0.0)
    for name, gradient in without[2].items():
        torch.testing.assert_close(with_filler[2][name], gradient, rtol=1e-5, atol=1e-5)
    empty = run(model, [rows(slice(FILLER, B))])
    assert empty[:2] == (0.0, 0.0)
    assert not any(gradient.any() for gradient in empty[2].values())


def test_losses_of_tokens_are_weighted_and_sum_to_the_sum() -> None:
    model = small()
    given = rows()
    loss = next_token(model, given)
    logits = model.head(model(given.tokens_BT, cu_seqlens=given.cu_seqlens))
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given.labels_BT.flatten(), reduction="none")
    torch.testing.assert_close(loss.losses_BT, (wanted.view(B, T) * given.weights_BT).detach())
    torch.testing.assert_close(loss.losses_BT.sum(), loss.sum.detach())
    elsewhere = next_token(model, dataclasses.replace(given, positions_BT=given.positions_BT * 3))
    assert not torch.allclose(elsewhere.sum, loss.sum, rtol=1e-4)
    half = next_token(model, dataclasses.replace(given, weights_BT=given.weights_BT / 2))
    torch.testing.assert_close((half.sum, half.count), (loss.sum / 2, loss.count / 2))
    assert loss.sum.requires_grad
    assert not loss.losses_BT.requires_grad
