"""The module that the engine is given: model and objective as one forward, so that ZeRO's hooks see one call."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fmscale.objectives.inputs import Inputs
from fmscale.objectives.loss import Loss

Objective = Callable[[nn.Module, Inputs], Loss]


class ObjectiveModule(nn.Module):
    """forward(rows) -> (sum, count, losses_BT) of the objective on the model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, rows: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and count of the loss, and the weighted loss of each token, detached."""
        loss = self._objective(self.model, rows)
        return loss.sum, loss.count, loss.losses_BT

    def logical_names(self) -> dict[int, str]:
        """id of each trained parameter -> its name in the model, the name that checkpoints use."""
        return {id(p): name for name, p in self.model.named_parameters() if p.requires_grad}


class CastModule(nn.Module):
    """A Trained that computes in `dtype` with weights that stay as they are: for ZeRO stage 0, whose parameters
    are the fp32 masters. Each forward casts the weights once; autograd gives fp32 gradients back, which
    therefore accumulate in fp32.
    """

    def __init__(self, trained: ObjectiveModule, dtype: torch.dtype) -> None:
        super().__init__()
        self.trained = trained
        self._dtype = dtype

    def forward(self, rows: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """As the Trained's."""
        weights = {name: p.to(self._dtype) for name, p in self.trained.named_parameters()}
        out: tuple[Tensor, Tensor, Tensor] = functional_call(self.trained, weights, (rows,))
        return out
