"""The contract of an objective: samples of a forward in, a `Loss` out. Shapes: B rows, T tokens a row, N positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from fmscale.errors import ConfigError


class SampleBatch(Protocol):
    """Samples of a forward on the host, as a loader delivers them."""

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Named tensors. Parts of tokens are [B, T, ...] (rows of a stream) or [1, N, ...] (a flat forward), parts that
        belong to a sample as a whole [samples, ...].
        """

    @property
    def weights(self) -> Tensor:
        """float32: weight of each target; 0 in fillers."""

    @property
    def positions(self) -> Tensor:
        """int64 [B, T] or [1, N]: position of each token in its document."""

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (documents + 1,): bounds of the documents in the B * T or N positions, read as one sequence."""

    @property
    def bounds(self) -> Tensor:
        """int32 (samples + 1,): bounds of the samples in these positions. In rows they are 0, T, 2T, ...; in a flat
        forward there is padding behind the last bound.
        """

    @property
    def source(self) -> Tensor:
        """int64 (samples,): source of each sample; -1 for a filler."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Tensors that an objective gets for one forward."""

    tensors: Mapping[str, Tensor]
    """Named tensors, as the objective's `collate` made them."""
    weights: Tensor
    """float32: weight of each target. Their sum over a step's forwards and ranks divides the step's loss."""
    source: Tensor
    """int64 (samples,): source of each sample; -1 for a filler."""
    bounds: Tensor
    """int32 (samples + 1,): bounds of the samples, as in `SampleBatch`."""

    def to(self, device: str) -> "Inputs":
        """These inputs, contiguous on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True).contiguous()

        tensors = {name: move(tensor) for name, tensor in self.tensors.items()}
        weights, source, bounds = (move(tensor) for tensor in (self.weights, self.source, self.bounds))
        return Inputs(tensors=tensors, weights=weights, source=source, bounds=bounds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """A sum over targets and its count, kept apart: a step divides by its count over all ranks."""

    sum: Tensor
    """fp32 scalar, differentiable."""
    count: Tensor
    """fp32 scalar: the weight of the targets in `sum`."""
    by_sample: Tensor
    """fp32 [2, samples], detached: summed loss and weight of each sample."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars, of the same names in every forward. The journal divides their sums over a step by its count."""


Gather = Callable[[Tensor], Tensor]
"""Rows of all ranks in the order of ranks, whose first dimensions may differ. Its backward is reduce-scatter (sum)."""


RECORD_NAMES = ("time", "step", "loss", "lr", "grad_norm", "applied", "seconds", "data_stall", "ckpt_blocking", "mfu")
"""Names in a step's record, which no unit may take."""


class Objective(Protocol):
    """The function from inputs and a model to a loss. It has no weights: a learned scale belongs to the model.

    All ranks call the same methods in the same order. A forward may consist of fillers only.
    """

    unit: str
    """Unit that the weights count: "tokens", "images", "pairs". Loss curves and rates name it."""

    def collate(self, batch: SampleBatch) -> Inputs:
        """The inputs of a forward, on the host."""
        ...

    def before(self, model: nn.Module, inputs: Sequence[Inputs], gather: Gather) -> Sequence[Any] | None:
        """Compute once a step, before any backward, an entry for each forward: its `context`. None stands for no
        entries.

        No graph is kept, unless the objective enables gradients itself. Taking number i of `inputs` seeds dropout as
        in forward i, so that a model called on it right then repeats that forward.
        """
        return None

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any) -> Loss:
        """The loss of one forward; `context` is its entry of `before`, or None."""
        ...


def check_objective(objective: Objective) -> Objective:
    """The objective itself. Raises ConfigError if it lacks a method, or a word for its unit."""
    kind, unit = type(objective), getattr(objective, "unit", None)
    stubs = {None, Objective.collate, Objective.__call__}
    lacks = [f"the method {name}" for name in ("collate", "before", "__call__") if getattr(kind, name, None) in stubs]
    if not isinstance(unit, str) or not unit.isidentifier() or unit in RECORD_NAMES:
        lacks.append(f"a word for the unit that its weights count, which is {unit!r}")
    if lacks:
        raise ConfigError(
            f"the objective {kind.__name__} lacks {' and '.join(lacks)}",
            found=f"{kind.__module__}.{kind.__qualname__}",
            remedy="Derive it from fmscale.objectives.Objective; define `collate`, `__call__`, and a `unit` such as "
            '"images" or "pairs".',
        )
    return objective
