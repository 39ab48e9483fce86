"""Masters and moments of a DeepSpeed engine as logical pieces, the form that checkpoints use.

DeepSpeed 0.19 has these layouts (read in its source; private names, so each is checked before use):

- stage 0: the module's own fp32 parameters, the same on every rank;
- stage 1 with bf16 and fp32 accumulation (BF16_Optimizer), stages 1 and 2 (DeepSpeedZeroOptimizer, offload
  too): each parameter group flattened, cut into dp_size equal parts, this rank's part as fp32 master;
- stage 3: every parameter flattened and cut by itself, this rank's pieces one after another in sub-groups.

In all of them AdamW's moments have the master's shape. A piece is a range of one flattened parameter. A frozen
parameter has no master and no moments: its piece is the parameter itself, at stage 3 this rank's part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fmscale.checkpoint.format.piece import Piece, elements
from fmscale.errors import ConfigError
from fmscale.train.engine.optimizer import MOMENTS, state_of


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A range of a logical parameter inside one of this rank's master tensors."""

    name: str
    shape: tuple[int, ...]
    """Global shape."""
    start: int
    """First element in the flattened parameter."""
    count: int
    master: Tensor
    """The tensor that the optimizer updates; of a frozen parameter the parameter itself."""
    offset: int
    """First element in the flattened master."""
    frozen: bool = False
    """True for a parameter that is not trained: it has no moments."""


def slices(engine: Any, names: dict[int, str], stage: int, rank: int) -> list[Slice]:
    """This rank's part of every parameter. `names`: id of each parameter -> logical name.

    Stage 0 gives every rank everything, and frozen parameters are whole below stage 3. Raises ConfigError for an
    engine whose layout is not known.
    """
    return [*_trained(engine, names, stage, rank), *_frozen(engine.module, names, rank)]


def _trained(engine: Any, names: dict[int, str], stage: int, rank: int) -> Iterator[Slice]:
    optimizer = engine.optimizer
    if stage == 0:
        trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
        return _flat_groups([[parameter] for parameter in trained], trained, [[0]] * len(trained), names, rank=0)
    if stage == 3:
        return _stage_3(optimizer, names, rank)
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
        offsets = [list(accumulate([p.numel() for p in group], initial=0))[:-1] for group in groups]
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        groups, masters = optimizer.round_robin_bit16_groups, optimizer.single_partition_of_fp32_groups
        offsets = optimizer.round_robin_bit16_offsets
    else:
        raise ConfigError(
            "this DeepSpeed keeps its state in a way that checkpoints do not know",
            found=type(optimizer).__name__,
            remedy="Use deepspeed 0.19.5 to 0.19.8, or another zero_stage.",
        )
    return _flat_groups(groups, masters, offsets, names, rank)


def _frozen(module: nn.Module, names: dict[int, str], rank: int) -> Iterator[Slice]:
    for parameter in module.parameters():
        if parameter.requires_grad:
            continue
        # ZeRO-3 keeps this rank's part in `ds_tensor`, filled up to equal parts.
        part = getattr(parameter, "ds_tensor", parameter)
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        start = min(rank * part.numel(), elements(shape)) if part is not parameter else 0
        count = min(part.numel(), elements(shape) - start)
        if count:
            name = names[id(parameter)]
            yield Slice(name=name, shape=shape, start=start, count=count, master=part, offset=0, frozen=True)


def _flat_groups(
    groups: list[list[Tensor]], masters: list[Tensor], offsets: list[list[int]], names: dict[int, str], rank: int
) -> Iterator[Slice]:
    """Slices of groups whose parameters lie one after another, cut into equal parts: part number `rank`."""
    for group, master, firsts in zip(groups, masters, offsets, strict=True):
        begin = rank * master.numel()
        end = begin + master.numel()
        for parameter, first in zip(group, firsts, strict=True):
            low, high = max(first, begin), min(first + parameter.numel(), end)
            if low < high:
                name, shape, start, offset = names[id(parameter)], tuple(parameter.shape), low - first, low - begin
                yield Slice(name=name, shape=shape, start=start, count=high - low, master=master, offset=offset)


def _stage_3(optimizer: Any, names: dict[int, str], rank: int) -> Iterator[Slice]:
    for group, master in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            part = int(parameter.partition_numel())
            start = min(rank * part, parameter.ds_numel)
            count = min(part, parameter.ds_numel - start)
            if count:
                name, shape = names[id(parameter)], tuple(parameter.ds_shape)
                yield Slice(name=name, shape=shape, start=start, count=count, master=master, offset=offset)
            offset += part


def pieces_of(part: Slice, base: Any) -> Iterator[Piece]:
    """Live views of one slice: the master, then its moments; of a frozen parameter the weight alone."""
    moments = {} if part.frozen else {m: state_of(base, part.master)[m] for m in MOMENTS}
    tensors = {"weight": part.master.detach(), **moments}
    for state, tensor in tensors.items():
        yield Piece(
            name=part.name,
            state=state,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=part.shape,
            start=part.start,
            tensor=tensor.view(-1)[part.offset : part.offset + part.count],
        )


@torch.no_grad()
def publish(engine: Any, stage: int) -> None:
    """Carry restored masters into the weights that forward uses, on every rank.

    DeepSpeed's own refresh_fp32_params copies the other way, from low to high precision.
    """
    optimizer = engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            # DeepSpeed would not gather an available parameter again, and it would keep its old values.
            optimizer._partition_all_parameters()
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        # The copies that hpZ keeps within a node; DeepSpeed's own function leaves frozen parameters out.
        for parameter in engine.module.parameters():
            parameter.ds_secondary_tensor = None
