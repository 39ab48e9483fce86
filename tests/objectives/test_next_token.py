import dataclasses

import torch
from torch import Tensor

from fmscale.models import Decoder
from fmscale.objectives import Inputs, NextToken
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
        tensors={
            "tokens": text[which, :T],
            "labels": text[which, 1:],
            "positions": positions[which, :T],
            "cu_seqlens": torch.cat((begins, torch.tensor([inputs.numel()]))).to(torch.int32),
        },
        weights=weights[which, 1:],
        source=source[which],
        bounds=torch.arange(0, inputs.numel() + 1, T, dtype=torch.int32),
    )


def run(model: Decoder, parts: list[Inputs]) -> tuple[float, float, dict[str, Tensor]]:
    """Loss sum, count and gradients over several microbatches."""
    model.zero_grad()
    total = count = 0.0
    for part in parts:
        loss = NextToken()(model, part)
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


def losses_of(model: Decoder, given: Inputs) -> Tensor:
    """The loss of each token by way of logits, [B, T]."""
    tensors = given.tensors
    logits = model.head(model(tensors["tokens"], cu_seqlens=tensors["cu_seqlens"]))
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["labels"].flatten(), reduction="none")
    return (each.view(given.weights.shape) * given.weights).detach()


def test_losses_are_weighted_and_sum_to_the_sum() -> None:
    model = small()
    given = rows()
    loss = NextToken()(model, given)
    torch.testing.assert_close(loss.by_sample, torch.stack((losses_of(model, given).sum(1), given.weights.sum(1))))
    tensors = given.tensors
    hidden = model(tensors["tokens"], positions_BT=tensors["positions"], cu_seqlens=tensors["cu_seqlens"])
    total, count, losses_BT = model.head(hidden, labels=tensors["labels"], token_weights=given.weights)
    assert torch.equal(loss.by_sample, torch.stack((losses_BT.sum(1), given.weights.sum(1)))), "not to the bit"
    assert (loss.sum, loss.count) == (total, count)
    torch.testing.assert_close(loss.by_sample.sum(1), torch.stack((loss.sum, loss.count)).detach())
    further = {**given.tensors, "positions": given.tensors["positions"] * 3}
    elsewhere = NextToken()(model, dataclasses.replace(given, tensors=further))
    assert not torch.allclose(elsewhere.sum, loss.sum, rtol=1e-4)
    half = NextToken()(model, dataclasses.replace(given, weights=given.weights / 2))
    torch.testing.assert_close((half.sum, half.count), (loss.sum / 2, loss.count / 2))
    assert loss.sum.requires_grad
    assert not loss.by_sample.requires_grad


def flat(given: Inputs, bounds: list[int]) -> Inputs:
    """The same documents as a flat forward of samples with these bounds, and 8 positions of padding behind them."""
    tensors = {
        name: torch.nn.functional.pad(each.flatten(), (0, 8))[None]
        for name, each in given.tensors.items()
        if name != "cu_seqlens"
    }
    ends = torch.tensor([given.weights.numel() + 8], dtype=torch.int32)
    return Inputs(
        tensors={**tensors, "cu_seqlens": torch.cat((given.tensors["cu_seqlens"], ends))},
        weights=torch.nn.functional.pad(given.weights.flatten(), (0, 8))[None],
        source=torch.zeros(len(bounds) - 1, dtype=torch.int64),
        bounds=torch.tensor(bounds, dtype=torch.int32),
    )


def test_a_flat_forward_gives_losses_by_the_bounds_of_its_samples() -> None:
    model = small()
    given = rows()
    loss, whole = NextToken()(model, flat(given, [0, 5, 5, 31, B * T])), NextToken()(model, given)
    torch.testing.assert_close((loss.sum, loss.count), (whole.sum, whole.count))
    each = torch.stack((losses_of(model, given), given.weights)).flatten(1)
    wanted = torch.stack([each[:, a:b].sum(1) for a, b in ((0, 5), (5, 5), (5, 31), (31, B * T))], 1)
    torch.testing.assert_close(loss.by_sample, wanted)
    single = NextToken()(model, flat(given, [0, B * T]))
    torch.testing.assert_close(single.by_sample, wanted.sum(1, keepdim=True))
