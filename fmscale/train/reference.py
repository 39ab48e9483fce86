"""The reference of a preference objective: its column in the samples, and the check before the first update."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fmscale.checkpoint.base import pin_for
from fmscale.checkpoint.checkpoint import open_in
from fmscale.config import Config
from fmscale.config.objective import RewardConfig
from fmscale.config.spec import RenderedSpec
from fmscale.data.samples.rendered import values_maker
from fmscale.errors import ConfigError, FmscaleError
from fmscale.objectives import Inputs, Pairs
from fmscale.store.backends.protocol import Backend
from fmscale.train.engine.protocol import Engine
from fmscale.train.resume import require_checkpoint

LIMITS = {"fp32": 1e-5, "bf16": 5e-2}
"""Largest |log-ratio| of a sequence before the first update, by precision."""
TOKENS = 64
"""Trained tokens of a sequence from which on its limit grows with them."""


class WrongReference(FmscaleError):
    """The reference is not the model that training begins with."""


def with_reference(config: Config, backend: Backend) -> Config:
    """The config whose rendered samples bring the column that `objective.reference` names by RUN@STEP.

    Raises ConfigError for a run or step that is not there, or an objective that the model cannot serve.
    """
    _check_model(config)
    reference = getattr(config.objective, "reference", "")
    run, at, step = reference.partition("@")
    if not at:
        return config
    require_checkpoint(config, "objective.reference", backend, run, step)
    digest = open_in(backend, run, int(step)).found.body["manifest"]["digest"]
    assert config.train.precision, "the session has chosen it"
    maker = values_maker("logps", digest, config.train.precision)

    def changed(holder: Any) -> Any:
        if not isinstance(holder.spec, RenderedSpec):
            return holder
        if holder.spec.too_long == "cut":
            raise ConfigError(
                f"{config.place('objective.reference')} has the log-probs of whole texts, and the spec cuts texts",
                found="too_long: cut",
                remedy="Take too_long: drop or refuse, or objective.reference: model.",
            )
        return replace(holder, spec=replace(holder.spec, reference=maker))

    # Without a spec rendered datasets have this.
    data = replace(config.data, spec=config.data.spec or RenderedSpec())
    data = changed(replace(data, sources=tuple(map(changed, data.sources))))
    evaluation = replace(config.evaluation, sets=tuple(map(changed, config.evaluation.sets)))
    return replace(config, data=data, evaluation=evaluation)


def pin_reference(config: Config, backend: Backend) -> None:
    """Pin the checkpoint that `objective.reference` names, if it names one, for this run; rank 0 calls it.

    Raises ConfigError for a checkpoint that is not there, Conflict if it is retired meanwhile, StoreError.
    """
    run, at, step = getattr(config.objective, "reference", "").partition("@")
    if at:
        pin_for(config.train.run, backend, open_in(backend, run, int(step)), kind="preference")


def _check_model(config: Config) -> None:
    """Raise ConfigError for a reward objective without a score, a reference of adapters without adapters, or a copy of
    a model whose base stands in for it.
    """
    if isinstance(config.objective, RewardConfig) and not getattr(config.model, "score", True):
        raise ConfigError(
            f"{config.place('objective.kind')} is reward, and the model has no score",
            found=f"{config.place('model.score')}: false",
            remedy="Take model.score: true.",
        )
    reference, adapter = getattr(config.objective, "reference", ""), getattr(config, "adapter", None)
    if reference == "adapter_off" and adapter is None:
        raise ConfigError(
            f"{config.place('objective.reference')} is adapter_off, and the run has no adapter",
            found="adapter: null",
            remedy="Give the section adapter, or take objective.reference: model or RUN@STEP.",
        )
    if reference == "model" and adapter is not None:
        raise ConfigError(
            f"{config.place('objective.reference')} is model, a copy of all weights, and the run has an adapter",
            found=f"adapter.kind: {adapter.kind}",
            remedy="Take objective.reference: adapter_off, the base of the adapter, which is in memory already; or "
            "RUN@STEP for an adapter run that train.init begins with.",
        )


def check_reference(engine: Engine, inputs: Sequence[Inputs], config: Config) -> None:
    """Compare model and reference before the first update, in this rank's forwards of the step; all ranks call it.

    Raises WrongReference where a sequence's |log-ratio| is above the limit of the precision: 1e-5 (fp32) or 5e-2 (bf16)
    up to 64 trained tokens, and in proportion to the tokens beyond.
    """
    objective = engine.objective
    if not isinstance(objective, Pairs) or objective.reference is None:
        return
    worst = torch.zeros(2)
    for each in inputs:
        found = engine.look(partial(objective.log_ratios, inputs=each))
        assert found is not None, "the objective has a reference"
        ratios, tokens = found[0].abs().cpu(), found[1].cpu()
        excess = ratios / (tokens / TOKENS).clamp(min=1)
        if len(excess) and not excess.max() <= worst[0]:
            at = int(excess.argmax())
            worst = torch.stack((excess[at], ratios[at]))
    assert config.train.precision, "the session has chosen it"
    limit = LIMITS[config.train.precision]
    if not worst[0] <= limit:
        raise WrongReference(
            f"{config.place('objective.reference')}: before the first update the model's log-probs differ from the "
            "reference's",
            found=f"log-ratio {float(worst[1]):.3g} of a sequence, the limit for {config.train.precision} is {limit:g}",
            remedy="The reference must be the weights of train.init, in the same precision and of the same rendered "
            "texts. Take model.dropout: 0, train.init and objective.reference of one checkpoint, or reference: model.",
        )
