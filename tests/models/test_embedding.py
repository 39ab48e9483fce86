"""The gradient of a large embedding on a CPU, in every use: equal to torch's."""

import pytest
import torch
from torch import Tensor, nn

from fmscale.models.layers.linear import LARGE, Embedding

V, D = 2**15, 512  # 64 MiB in fp32
IDS = torch.tensor([[5, 0, 5], [V - 1, 7, 5]])


def gradient(rows: Tensor, weight: Tensor) -> Tensor:
    (found,) = torch.autograd.grad((rows * torch.arange(1.0, D + 1)).sum(), weight)
    return found


def table(dtype: torch.dtype = torch.float32) -> Embedding:
    embedding = Embedding(V, D, dtype=dtype)
    nn.init.constant_(embedding.weight, 0.5)
    assert embedding.weight.nbytes >= LARGE
    return embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_torch(dtype: torch.dtype) -> None:
    embedding = table(dtype)
    ours = gradient(embedding(IDS), embedding.weight)
    torch.testing.assert_close(ours, gradient(nn.functional.embedding(IDS, embedding.weight), embedding.weight))


def test_a_tied_head_and_two_backwards_add_up() -> None:
    embedding = table()

    def backward(rows: Tensor) -> None:
        (rows @ embedding.weight[:64].T).sum().backward()

    for _ in range(2):
        backward(embedding(IDS))
    ours, embedding.weight.grad = embedding.weight.grad, None
    for _ in range(2):
        backward(nn.functional.embedding(IDS, embedding.weight))
    assert ours is not None
    torch.testing.assert_close(ours, embedding.weight.grad)
