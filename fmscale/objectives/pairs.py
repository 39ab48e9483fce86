"""Objectives over preference pairs: a sample has two documents, the chosen answer first; the count is that of pairs.

A loss of log-probs is worked out first, without the model's graph; its derivatives then weigh the log-probs in the
head's own loss. Shapes as in `logps.py`, and P pairs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fmscale.config.objective import IpoConfig, KtoConfig, OrpoConfig, PreferenceConfig, SimpoConfig
from fmscale.objectives.logps import document_logps, grouped, hidden_at, weighted_logps
from fmscale.objectives.mismatched import mismatched
from fmscale.objectives.preference import dpo_losses, ipo_losses, kto_losses, orpo_losses, simpo_losses
from fmscale.objectives.protocol import Gather, Inputs, Loss, Objective, SampleBatch

COLUMN = "reference"
"""Part of a sample with the reference's log-prob of each of its documents."""


class Pairs(Objective):
    """DPO and its kin."""

    unit = "pairs"

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config
        self.reference: str | None = getattr(config, "reference", None)

    def collate(self, batch: SampleBatch) -> Inputs:
        """Index tensors of `grouped`, and the reference's log-probs where samples have them. Raises DataError for
        samples that are no pairs.
        """
        inputs, _ = grouped(batch, 2, 2, self.config.kind)
        if COLUMN in batch.parts:
            reference = batch.parts[COLUMN][inputs.tensors["present"]].flatten()
            inputs = Inputs(
                tensors={**inputs.tensors, COLUMN: reference},
                weights=inputs.weights,
                source=inputs.source,
                bounds=inputs.bounds,
            )
        return inputs

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        """`model(tokens, positions_BT=, cu_seqlens=)` gives hidden states, and `model.head(hidden, labels=,
        token_weights=)` their losses.
        """
        given, head = inputs.tensors, getattr(model, "head")  # noqa: B009
        reference = self.reference_logps(model, given)
        hidden = hidden_at(model, given, given["trained"])
        with torch.enable_grad():
            logps = document_logps(head, hidden.detach(), given).requires_grad_()
            losses = self.losses(logps, reference, given["spans"].diff(), context)
            [factors] = torch.autograd.grad(losses.sum(), logps)
        total = losses.detach().sum()
        if torch.is_grad_enabled():
            moving = weighted_logps(head, hidden, given, factors)
            total = moving + (total - moving).detach()
        by_sample = torch.stack((torch.zeros_like(inputs.weights), inputs.weights))
        by_sample[0, given["present"]] = losses.detach()
        return Loss(
            sum=total,
            count=inputs.weights.sum(),
            by_sample=by_sample,
            metrics=self.metrics(logps.detach(), reference, given["spans"].diff(), context),
        )

    def reference_logps(self, model: nn.Module, given: Any) -> Tensor | None:
        """The reference's log-prob of each document, fp32 [D]; None for an objective without a reference."""
        if self.reference is None or COLUMN in given:
            column: Tensor | None = given.get(COLUMN)
            return column
        with torch.no_grad(), self.adapters_off(model):
            chosen: Any = model.reference if self.reference == "model" else model
            return document_logps(chosen.head, hidden_at(chosen, given, given["trained"]), given)

    def adapters_off(self, model: nn.Module) -> AbstractContextManager[object]:
        """The context in which the model is its own reference."""
        wrapped: Any = model
        off: AbstractContextManager[object] = (
            wrapped.adapters_off() if self.reference == "adapter_off" else nullcontext()
        )
        return off

    def losses(self, logps: Tensor, reference: Tensor | None, tokens: Tensor, z: Tensor | None) -> Tensor:
        """The loss of each pair, fp32 [P], from log-probs, the reference's, and numbers of trained tokens [2 P]."""
        config, means = self.config, (logps / tokens.clamp(min=1)).view(-1, 2).unbind(1)
        if isinstance(config, OrpoConfig):
            return orpo_losses(*means, weight=config.weight)
        if isinstance(config, SimpoConfig):
            return simpo_losses(*means, beta=config.beta, margin=config.margin)
        assert reference is not None, "the config names a reference"
        ratios = logps - reference
        if getattr(config, "per", "sequence") == "token":
            ratios = ratios / tokens.clamp(min=1)
        chosen, rejected = ratios.view(-1, 2).unbind(1)
        if isinstance(config, IpoConfig):
            return ipo_losses(chosen, rejected, beta=config.beta)
        if isinstance(config, KtoConfig):
            assert z is not None, "`before` gives it"
            weights = {"desirable": config.desirable, "undesirable": config.undesirable}
            return kto_losses(chosen, rejected, z, beta=config.beta, **weights)
        return dpo_losses(chosen, rejected, beta=config.beta, loss=config.loss, label_smoothing=config.label_smoothing)

    def metrics(self, logps: Tensor, reference: Tensor | None, tokens: Tensor, z: Tensor | None) -> dict[str, Tensor]:
        """Sums over pairs: rewards (beta times log-ratio; without a reference times the log-prob a token), their
        margin, the share of pairs in the right order, log-probs, trained tokens.
        """
        factor = self.config.weight if isinstance(self.config, OrpoConfig) else self.config.beta
        rewards = factor * (logps / tokens.clamp(min=1) if reference is None else logps - reference)
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        found = {
            "accuracy": (chosen > rejected).float(),
            "reward_margin": chosen - rejected,
            **{f"reward_{side}": value for side, value in (("chosen", chosen), ("rejected", rejected))},
        }
        for name, values in (("logp", logps), ("tokens", tokens.float())):
            found |= dict(zip((f"{name}_chosen", f"{name}_rejected"), values.view(-1, 2).unbind(1), strict=True))
        if z is not None:
            found["z"] = z.expand(len(chosen))
        return {name: values.sum() for name, values in found.items()}

    def log_ratios(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor] | None:
        """Log-ratio to the reference and number of trained tokens of each document; None without a reference."""
        given = inputs.tensors
        reference = self.reference_logps(model, given)
        if reference is None:
            return None
        logps = document_logps(getattr(model, "head"), hidden_at(model, given, given["trained"]), given)  # noqa: B009
        return logps - reference, given["spans"].diff()


class Kto(Pairs):
    """KTO, whose mean divergence is that of the whole step."""

    def before(self, model: nn.Module, inputs: Sequence[Inputs], gather: Gather) -> Sequence[Tensor]:
        """The mean divergence z of mismatched pairs, at least 0, the same for every forward, rank and division of the
        step: prompts of a pair with the answers of the next pair of the step (`mismatched`).
        """
        sums = torch.zeros(2, device=inputs[0].weights.device)
        for number, given in enumerate(mismatched([each.tensors for each in inputs], gather)):
            ratios = self.log_ratios(model, Inputs(**{**vars(inputs[number]), "tensors": given}))
            assert ratios is not None, "the config names a reference"
            sums += torch.stack((ratios[0].sum(), torch.ones_like(ratios[0]).sum()))
        total, count = gather(sums[None]).sum(0)
        return [(total / count.clamp(min=1)).clamp(min=0)] * len(inputs)


def make_pairs(config: PreferenceConfig) -> Pairs:
    """The objective over pairs of a config."""
    return Kto(config) if isinstance(config, KtoConfig) else Pairs(config)
