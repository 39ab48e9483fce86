"""The contract of an engine: the operations of a model whose state is spread over ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from fmscale.checkpoint.format.piece import Piece
from fmscale.objectives.protocol import Inputs, Loss, Objective

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Update:
    """Outcome of an optimizer step."""

    grad_norm: float
    """Global gradient norm before clipping; not finite for a non-finite gradient."""
    applied: bool
    """True if the weights changed; False for a non-finite gradient, or a step that was refused."""


class Engine(Protocol):
    """A model whose state is spread over ranks. All ranks call the same methods in the same order."""

    module: nn.Module
    objective: Objective
    updates: int
    """Optimizer steps that were applied."""

    def before(self, inputs: Sequence[Inputs]) -> Sequence[Any]:
        """Run the objective's `before` on a step's inputs: the context of each forward."""
        ...

    def look(self, call: Callable[[nn.Module], T]) -> T:
        """The result of `call` on the model, without a graph."""
        ...

    def forward(self, inputs: Inputs, context: Any = None) -> Loss:
        """The loss of a microbatch."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of a scalar whose sum over ranks and microbatches is minimised. `last` marks
        the step's last microbatch, which completes the reduction over ranks.
        """
        ...

    def step(self, rate: float, accept: Callable[[float], bool] | None = None) -> Update:
        """Clip, update at this learning rate, and clear the gradients. Masters and moments change only here. `accept`
        is called once, on all ranks, with the global norm before clipping (not finite for a non-finite gradient); if it
        answers False, masters and moments stay as they are.
        """
        ...

    def pieces(self, *, save: bool) -> list[Piece]:
        """Live views of this rank's masters and moments, and of its frozen parameters. For a save the pieces of all
        ranks hold every element once; for a restore each rank's pieces are all that it needs.
        """
        ...

    def base_pieces(self) -> list[Piece]:
        """Live views of the frozen weights that an adapter run reads from its base; `pieces` leaves them out."""
        ...

    def copy_weights(self, target: nn.Module) -> None:
        """Copy the whole weights into the same parameters of a module outside of the engine, one after another."""
        ...

    def restored(self, updates: int) -> None:
        """Carry the restored pieces into the weights, and set the step count to `updates`."""
        ...
