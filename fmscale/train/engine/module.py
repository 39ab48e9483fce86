"""From the config to an engine: the model, its precision, recompute and compile, and the module that is sharded."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint, noop_context_fn

from fmscale.config import BatchShape, Config, NextTokenConfig
from fmscale.models import Decoder, build
from fmscale.models.lora import draw_adapters, wrap
from fmscale.models.weights import Whole
from fmscale.objectives import Objective, check_objective, make_objective
from fmscale.runtime.axes import Axis
from fmscale.train.engine.cores import bound_compilers
from fmscale.train.engine.deepspeed import DeepSpeedEngine, born_partitioned
from fmscale.train.engine.deepspeed_config import deepspeed_config


class ModelRoot(nn.Module):
    """The module that is sharded: forward(call) -> call(model), so that the hooks of sharding are around every use."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[nn.Module], Any]) -> Any:
        """The result of `call` on the model."""
        return call(self.model)


class CastModule(nn.Module):
    """A ModelRoot that computes in `dtype` and keeps its fp32 weights: for ZeRO stage 0, whose parameters are
    the masters. Each forward casts the weights; autograd gives fp32 gradients, which accumulate in fp32. Frozen
    parameters have `dtype` from the start, as at all other stages: a forward does not cast them.
    """

    def __init__(self, trained: ModelRoot, dtype: torch.dtype) -> None:
        super().__init__()
        self.trained = trained
        self._dtype = dtype
        for parameter in trained.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def forward(self, call: Callable[[nn.Module], Any]) -> Any:
        """The result of `call` on the model, computed in `dtype`."""
        weights = {name: p.to(self._dtype) for name, p in self.trained.named_parameters()}
        return functional_call(self.trained, weights, (call,))


def build_engine(
    config: Config,
    dp: Axis,
    vocab_size: int | None,
    batch: BatchShape,
    device: str,
    *,
    objective: Objective | None = None,
    compiler: str = "inductor",
    draw: bool = True,
    cores: int = 1,
) -> DeepSpeedEngine:
    """The engine of a new run: weights made of `train.seed` alone, the same at any number of ranks.

    `objective` stands for that of the config. `compiler` is the backend of torch.compile, where that is used. Without
    `draw`, meant for an engine that a checkpoint fills, the weights of our decoder are 0: drawing takes 4 s a billion
    parameters. `cores` bounds the threads of an update in host memory, and of compilers.
    """
    train = config.train
    objective = check_objective(make_objective(config.objective) if objective is None else objective)
    if train.zero_stage < 3:
        model = _initialised(config, vocab_size, draw)
    else:  # a rank holds a single whole parameter at a time
        with born_partitioned(deepspeed_config(train, config.optimizer, batch, device), device) as whole:
            model = _initialised(config, vocab_size, draw, whole)
    cast = train.precision == "bf16" and train.zero_stage == 0
    chosen = compiler if _compiled(config, device) else None
    if chosen:
        bound_compilers(cores)
    wrap_blocks(
        getattr(model, "layers", nn.ModuleList()),
        cast=cast,
        recompute=train.recompute == "full",
        # A class of the user's own may drop out anywhere.
        dropout=getattr(config.model, "dropout", 1.0) > 0 or getattr(config.adapter, "dropout", 0.0) > 0,
        compiler=chosen,
    )
    if (reference := getattr(model, "reference", None)) is not None:
        wrap_blocks(reference.layers, recompute=False, dropout=False, compiler=chosen)
    trained = ModelRoot(model)
    module = CastModule(trained, torch.bfloat16) if cast else trained
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return DeepSpeedEngine(module, objective, names, config, batch, dp, device, cores=cores)


def _initialised(config: Config, vocab_size: int | None, draw: bool, *whole: Whole) -> nn.Module:
    """The model of a config. Without `init_weights`, constructors draw from torch's own generator under the seed. With
    an adapter nothing else is drawn. With `objective.reference: model` it has a frozen copy of the same weights,
    `reference`, that drops nothing out. Without `draw` a decoder has zeros; a class of the user's own may also set what
    no checkpoint has, such as buffers, and is initialised.
    """
    if getattr(config.objective, "reference", None) == "model":
        decoder = config.decoder("objective.reference: model")
        alone = replace(config, objective=NextTokenConfig())
        model = _initialised(alone, vocab_size, draw, *whole)
        model.reference = _initialised(replace(alone, model=replace(decoder, dropout=0.0)), vocab_size, draw, *whole)
        model.reference.requires_grad_(False)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = build(config.model, vocab_size=vocab_size)
        if config.adapter is not None:
            wrap(model, config.adapter)
    init: Any = getattr(model, "init_weights", None) if config.adapter is None else partial(draw_adapters, model)
    if not draw and type(model) is Decoder:
        for parameter in model.parameters():
            part = getattr(parameter, "ds_tensor", parameter)
            part.data.zero_()
            if part is not parameter:
                setattr(parameter, "ds_secondary_tensor", None)  # noqa: B010  (the copy of hpZ, made before)
    elif init is not None:
        init(torch.Generator().manual_seed(config.train.seed), *whole)
    return model


def wrap_blocks(
    layers: nn.ModuleList, *, recompute: bool, dropout: bool, compiler: str | None, cast: bool = False
) -> None:
    """Wrap each block in compiled code and recompute; the code of a block contains neither.

    Each block is compiled by itself: the code of one block serves all blocks and any number of documents, and compiles
    in seconds. Recompute wraps the compiled code, as torch compiles nothing that a checkpoint calls. Without `dropout`
    a recomputed block needs no generator's state, which costs four copies a block on a GPU. With `cast`, recompute
    takes the weights that CastModule gave to forward: in backward a block has its fp32 weights again.
    """
    for block in layers:
        if compiler is not None:
            block.forward = _for_any_documents(torch.compile(block.forward, dynamic=None, backend=compiler))
        if recompute:
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=dropout,
                context_fn=partial(_same_weights, block) if cast else noop_context_fn,
            )


def _for_any_documents(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled code of a block, in which vectors of integers, `cu_seqlens` above all, may have any length from the
    start: the dry run's length would otherwise become a constant, and the first step would compile anew.
    """
    # The import takes 2 CPU seconds, which a run without torch.compile would spend for nothing.
    from torch._dynamo import maybe_mark_dynamic

    def forward(*inputs: Any, **named: Any) -> Tensor:
        for each in (*inputs, *named.values()):
            if isinstance(each, Tensor) and each.dim() == 1 and not each.is_floating_point():
                maybe_mark_dynamic(each, 0)
        return compiled(*inputs, **named)

    return forward


def _same_weights(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's forward, and of its recompute with the weights of that forward."""
    return nullcontext(), _reparametrize_module(block, dict(block.named_parameters()))


def _compiled(config: Config, device: str) -> bool:
    if config.train.compile is None:
        # ZeRO-3 fetches parameters in hooks inside the block, which break the graph at every layer.
        return device.startswith("cuda") and config.train.zero_stage < 3
    return config.train.compile
