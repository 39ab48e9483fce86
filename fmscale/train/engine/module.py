"""From the config to an engine: the model, its precision, recompute and compile, and the module that is sharded."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fmscale.config import BatchShape, Config
from fmscale.models import build
from fmscale.models.decoder import Decoder
from fmscale.objectives.next_token import next_token
from fmscale.objectives.protocol import Inputs, Objective
from fmscale.runtime.world import World
from fmscale.train.engine.deepspeed import DeepSpeedEngine, born_partitioned
from fmscale.train.engine.deepspeed_config import deepspeed_config


class ObjectiveModule(nn.Module):
    """forward(inputs) -> (sum, count, losses_BT) of the objective on the model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and count of the loss, and the weighted loss of each token, detached."""
        loss = self._objective(self.model, inputs)
        return loss.sum, loss.count, loss.losses_BT

    def logical_names(self) -> dict[int, str]:
        """id of each parameter, trained or frozen -> its name in the model, the name that checkpoints use."""
        return {id(p): name for name, p in self.model.named_parameters()}


class CastModule(nn.Module):
    """An ObjectiveModule that computes in `dtype` and keeps its fp32 weights: for ZeRO stage 0, whose parameters are
    the masters. Each forward casts the weights; autograd gives fp32 gradients, which accumulate in fp32. Frozen
    parameters have `dtype` from the start, as at all other stages: a forward does not cast them.
    """

    def __init__(self, trained: ObjectiveModule, dtype: torch.dtype) -> None:
        super().__init__()
        self.trained = trained
        self._dtype = dtype
        for parameter in trained.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """The results of ObjectiveModule, computed in `dtype`."""
        weights = {name: p.to(self._dtype) for name, p in self.trained.named_parameters()}
        out: tuple[Tensor, Tensor, Tensor] = functional_call(self.trained, weights, (inputs,))
        return out


def build_engine(
    config: Config, world: World, vocab_size: int, batch: BatchShape, device: str, *, compiler: str = "inductor"
) -> DeepSpeedEngine:
    """The engine of a new run: weights made of `train.seed` alone, the same at any number of ranks.

    `compiler` is the backend of torch.compile, where that is used.
    """
    train = config.train
    model = _seeded(config, vocab_size, batch, device)
    wrap_blocks(
        model.layers,
        recompute=train.recompute == "full",
        dropout=config.model.dropout > 0,
        compiler=compiler if _compiled(config, device) else None,
    )
    trained = ObjectiveModule(model, next_token)
    cast = train.precision == "bf16" and train.zero_stage == 0
    module = CastModule(trained, torch.bfloat16) if cast else trained
    return DeepSpeedEngine(module, trained.logical_names(), config, batch, world, device)


def _seeded(config: Config, vocab_size: int, batch: BatchShape, device: str) -> Decoder:
    """The model with its first weights; at stage 3 a rank holds a single whole parameter at a time."""
    generator = torch.Generator().manual_seed(config.train.seed)
    if config.train.zero_stage < 3:
        model = build(config.model, vocab_size=vocab_size)
        model.init_weights(generator)
        return model
    with born_partitioned(deepspeed_config(config.train, config.optimizer, batch, device), device) as whole:
        model = build(config.model, vocab_size=vocab_size)
        model.init_weights(generator, whole)
    return model


def wrap_blocks(layers: nn.ModuleList, *, recompute: bool, dropout: bool, compiler: str | None) -> None:
    """Wrap each block in compiled code and recompute; the code of a block contains neither.

    Each block is compiled by itself: the code of one block serves all blocks, and compiles in seconds. Recompute wraps
    the compiled code, as torch compiles nothing that a checkpoint calls. Without `dropout` a recomputed block needs no
    generator's state, which costs four copies a block on a GPU.
    """
    for block in layers:
        if compiler is not None:
            block.forward = torch.compile(block.forward, dynamic=None, backend=compiler)
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=dropout)


def _compiled(config: Config, device: str) -> bool:
    if config.train.compile is None:
        # ZeRO-3 fetches parameters in hooks inside the block, which break the graph at every layer.
        return device.startswith("cuda") and config.train.zero_stage < 3
    return config.train.compile
