"""AdamW over two parameter groups: tensors with weight decay, and tensors without it."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fmscale.config.train import OptimizerConfig
from fmscale.errors import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The optimizer's state tensors, by the names that checkpoints use."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the imports of torch's compiler, of which its constructor and each of its steps need only
    marks that change nothing outside compiled code: 2 CPU seconds and 75 MB at the start of each rank.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    _update = staticmethod(inspect.unwrap(torch.optim.AdamW.step))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters; the result of `closure`."""
        return self._update(self, closure)


def parameter_groups(model: nn.Module, config: OptimizerConfig, *, decay: bool = True) -> list[dict[str, Any]]:
    """Groups for AdamW: tensors with two or more dimensions decay, norms and biases do not; without `decay` none does.
    Empty groups are left out: DeepSpeed flattens each group and cannot flatten an empty group. Frozen parameters are in
    no group. Raises ConfigError for a model without a trained parameter.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "the model has no parameter to train: all of them are frozen (requires_grad is False)",
            found=f"{len(list(model.parameters()))} frozen parameters",
            remedy="Leave requires_grad of the parameters that the run trains.",
        )
    # ZeRO-3 leaves an empty tensor where it keeps only a part, and the shape in `ds_shape`.
    dims = {id(p): len(getattr(p, "ds_shape", p.shape)) for p in trained}
    groups = [
        {"params": [p for p in trained if dims[id(p)] >= 2], "weight_decay": config.weight_decay if decay else 0.0},
        {"params": [p for p in trained if dims[id(p)] < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, *, offload: bool) -> Any:
    """torch's AdamW, fused; with `offload` DeepSpeed's, which updates in host memory.

    torch.compile'd or foreach variants are not used: on a flat partition there is one tensor a group, and
    the fused kernel reads and writes each of its bytes once.
    """
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if offload:
        from fmscale.train.engine.cpu_adam import load_cpu_adam

        return load_cpu_adam()(groups, adamw_mode=True, **settings)
    return AdamW(groups, fused=True, **settings)


def state_of(optimizer: Any, master: torch.Tensor) -> dict[str, Any]:
    """Optimizer state of a master tensor, made of zeros before the first step, so that a restore can fill it.

    A DeepSpeedCPUAdam counts steps in a number, torch's AdamW in a tensor.
    """
    state: dict[str, Any] = optimizer.state[master]
    if not state:
        on_host = type(optimizer).__name__ == "DeepSpeedCPUAdam"
        state["step"] = 0 if on_host else torch.zeros((), dtype=torch.float32, device=master.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(master.detach())
    return state


def set_step(optimizer: Any, masters: Iterable[torch.Tensor], step: int) -> None:
    """Set the count of every master's steps to `step`, on which AdamW's bias correction depends."""
    for master in masters:
        state = state_of(optimizer, master)
        state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step


@contextmanager
def asked(optimizer: Any, accept: Callable[[], bool]) -> Iterator[list[bool]]:
    """Ask `accept` at the first update of the optimizer inside, and leave out all of them if it refuses. Yields a list
    that then has the answer: DeepSpeed updates group by group, after the norm of all gradients is known.
    """
    update = optimizer.step
    answers: list[bool] = []

    def step(*args: Any, **options: Any) -> Any:
        if not answers:
            answers.append(accept())
        return update(*args, **options) if answers[0] else None

    optimizer.step = step
    try:
        yield answers
    finally:
        del optimizer.step
