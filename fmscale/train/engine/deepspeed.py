"""DeepSpeed as an engine: ZeRO stages 0 to 3."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fmscale.checkpoint.format.piece import Piece
from fmscale.config import BatchShape, Config
from fmscale.errors import ConfigError
from fmscale.models.weights import Whole
from fmscale.objectives.protocol import Inputs, Loss, Objective
from fmscale.runtime.axes import Axis
from fmscale.train.engine.accelerator import import_deepspeed, without_compiler, without_triton
from fmscale.train.engine.cores import threads
from fmscale.train.engine.deepspeed_config import deepspeed_config, sizes_of
from fmscale.train.engine.gather import gather_over
from fmscale.train.engine.optimizer import asked, make_optimizer, parameter_groups, set_step
from fmscale.train.engine.partitions import Slice, pieces_of, publish, slices
from fmscale.train.engine.protocol import T, Update


class DeepSpeedEngine:
    """DeepSpeed ZeRO stages 0 to 3 on CPU (gloo) or CUDA (nccl)."""

    def __init__(
        self,
        trained: nn.Module,
        objective: Objective,
        names: dict[int, str],
        config: Config,
        batch: BatchShape,
        dp: Axis,
        device: str,
        *,
        cores: int = 1,
    ) -> None:
        """`trained` calls a function with the model; `names` are the logical names of its parameters, by id. `cores`
        is the number of threads that update masters in host memory.

        torch.distributed must be initialised. Raises ConfigError for an engine whose state cannot be saved."""
        deepspeed = import_deepspeed(device)
        train, optimizer = config.train, config.optimizer
        self._stage = train.zero_stage
        self._dp = dp
        self._named = {names[id(parameter)]: parameter for parameter in trained.parameters() if id(parameter) in names}
        self.objective = objective
        self._gather = gather_over(dp)
        # Decay would pull the adapted weights to the base, and not to zero.
        groups = parameter_groups(trained, optimizer, decay=config.adapter is None)
        with without_triton():
            base = make_optimizer(groups, optimizer, offload=train.offload_optimizer)
        if train.zero_stage == 0:
            trained.to(device)
        settings = deepspeed_config(train, optimizer, batch, device, sizes_of(trained))
        # Our AdamW is torch's, which is in this list, and DeepSpeed warns of every class that is not.
        supported = deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS
        if type(base) not in supported:
            supported.append(type(base))
        # BF16_Optimizer prints 18 lines about memory on standard output, which is for results.
        with without_triton(), without_compiler(), redirect_stdout(io.StringIO()):
            self._engine, _, _, _ = deepspeed.initialize(
                model=trained, optimizer=base, config=settings, dist_init_required=False
            )
        self.module: nn.Module = self._engine.module
        # A rank alone would copy all its gradients into a buffer and back: 141 MB for two layers of SmolLM2.
        self._alone = self._stage == 0 and dp.size == 1
        self._engine.enable_backward_allreduce = not self._alone
        self.updates = 0
        self._clip = optimizer.clip_norm
        self._cores = cores if train.offload_optimizer else None
        # The AdamW itself, which DeepSpeed's optimizer wraps from stage 1 on.
        self._base = self._engine.optimizer if self._stage == 0 else self._engine.optimizer.optimizer
        if self._stage == 2 and not train.offload_optimizer:
            # A pass over all gradients and a wait, for what the test of their norm finds too.
            self._engine.optimizer.check_overflow = lambda **_: None
        parts = slices(self._engine, names, self._stage, dp.rank)
        # The frozen weights of an adapter run are in the checkpoint of its base, and in none of its own.
        self._base_slices = [part for part in parts if part.frozen and config.adapter is not None]
        self._slices = [part for part in parts if not part.frozen or config.adapter is None]

    def before(self, inputs: Sequence[Inputs]) -> Sequence[Any]:
        """The context of each forward of a step: None, where the objective computes nothing before."""
        nothing = [None] * len(inputs)
        if type(self.objective).before is Objective.before:
            return nothing
        contexts = self.look(lambda model: self.objective.before(model, inputs, self._gather)) or nothing
        if len(contexts) != len(inputs):
            raise ConfigError(
                f"`before` of the objective {type(self.objective).__name__} must return an entry for each forward",
                found=f"{len(contexts)} entries for {len(inputs)} forwards",
                remedy="Return a sequence as long as its `inputs`, or None.",
            )
        return contexts

    def look(self, call: Callable[[nn.Module], T]) -> T:
        """The result of `call` on the model, inside the hooks of sharding and without a graph."""
        found: list[T] = []
        with torch.no_grad():
            self._engine(lambda model: found.append(call(model)))
        return found[0]

    def copy_weights(self, target: nn.Module) -> None:
        """At stage 3 a rank holds a single gathered parameter at a time."""
        import deepspeed

        with torch.no_grad():
            for name, parameter in target.named_parameters():
                ours = self._named[name]
                with deepspeed.zero.GatheredParameters([ours], enabled=hasattr(ours, "ds_id")):
                    parameter.copy_(ours)

    def forward(self, inputs: Inputs, context: Any = None) -> Loss:
        losses: list[Loss] = []

        def call(model: nn.Module) -> Tensor:
            losses.append(self.objective(model, inputs, context))
            return losses[0].sum

        total: Tensor = self._engine(call)  # the sum, with the hooks of DeepSpeed's backward
        return replace(losses[0], sum=total)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient. DeepSpeed averages over ranks, so the loss is multiplied by their number."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._dp.size, scale_wrt_gas=False)

    def step(self, rate: float, accept: Callable[[float], bool] | None = None) -> Update:
        """Update, or leave everything as it is if a gradient is not finite or `accept` refuses."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        update = self._step_partitioned(accept) if self._stage else self._step_replicated(accept)
        self.updates += update.applied
        return update

    def _step_partitioned(self, accept: Callable[[float], bool] | None) -> Update:
        optimizer = self._engine.optimizer
        # With the single thread of `train.threads` 1 B parameters would take 2.5 s in host memory.
        cores = threads(self._cores) if self._cores else nullcontext()
        norms: list[float] = []

        def ask() -> bool:
            # DeepSpeed has just tested the norm, so it is at hand; behind the update the host would wait once more.
            norms.append(float(optimizer._global_grad_norm))
            return accept is None or accept(norms[0])

        with cores, asked(self._base, ask) as answers:
            self._engine.step()
        norm = norms[0] if norms else self._engine.get_global_grad_norm()
        overflow = bool(getattr(optimizer, "overflow", False))
        value = float("inf") if overflow else float("nan") if norm is None else float(norm)
        if accept is not None and not answers:
            accept(value)
        return Update(grad_norm=value, applied=not overflow and all(answers))

    def _step_replicated(self, accept: Callable[[float], bool] | None) -> Update:
        """Compute and check the norm here, as DeepSpeed neither reports nor checks it in fp32 at stage 0."""
        for parameter in self.module.parameters() if self._alone else ():
            if parameter.requires_grad and parameter.grad is None:  # decays all the same, as with more ranks
                parameter.grad = torch.zeros_like(parameter)
        limit = self._clip or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), limit))
        applied = (accept is None or accept(norm)) and norm < float("inf")
        if not applied:
            # The optimizer skips parameters without a gradient.
            self._engine.zero_grad()
        self._engine.step()
        return Update(grad_norm=norm, applied=applied)

    def pieces(self, *, save: bool) -> list[Piece]:
        """Live views of masters, moments and frozen parameters. At stage 0 all ranks hold the same state, below stage 3
        the same frozen parameters; each rank saves a share of these.
        """
        parts = self._slices
        if save:
            parts = [share for part in parts for share in self._share(part)]
        return [piece for part in parts for piece in pieces_of(part, self._base)]

    def base_pieces(self) -> list[Piece]:
        """Live views of this rank's frozen weights in an adapter run, which `pieces` leaves out."""
        return [piece for part in self._base_slices for piece in pieces_of(part, self._base)]

    def restored(self, updates: int) -> None:
        """Copy masters to weights, and set AdamW's step count, which its bias correction needs."""
        self.updates = updates
        trained = {id(part.master): part.master for part in self._slices if not part.frozen}
        set_step(self._base, trained.values(), updates)
        publish(self._engine, self._stage)

    def _share(self, part: Slice) -> list[Slice]:
        """This rank's part of a replicated tensor, none of fewer elements than ranks; a partition as it is."""
        if self._stage == 3 or (self._stage and not part.frozen):
            return [part]
        size, rank = self._dp.size, self._dp.rank
        low, high = rank * part.count // size, (rank + 1) * part.count // size
        share = replace(part, start=part.start + low, count=high - low, offset=part.offset + low)
        return [share] if share.count else []


@contextmanager
def born_partitioned(config: dict[str, Any], device: str) -> Iterator[Whole]:
    """Modules that are made inside keep only this rank's part of each parameter, for ZeRO stage 3: no rank ever holds
    the whole model. Yields a function whose context makes a parameter whole on all ranks, which fill it alike.
    """
    deepspeed = import_deepspeed(device)
    with redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, dist_init_required=False)
        # DeepSpeed would neither make another engine's groups of hpZ nor leave them out of this engine.
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        # On a CPU Init ignores its `dtype` (always bf16) but obeys the config's.
        with deepspeed.zero.Init(config_dict_or_path=config):
            yield lambda parameter: deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
