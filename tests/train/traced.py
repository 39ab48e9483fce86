"""A whole run that shows tests its engine's inputs and actions."""

from collections.abc import Callable
from functools import partialmethod
from typing import Any

import pytest

from fmscale.config import load_config
from tests.helpers.deepspeed_numbers import restart_numbers

STALL = 100.0
"""Reported seconds of waiting for each forward's data."""

Event = tuple[str, Any]


def traced(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> list[Event]:
    """Train as this rank of the test's ranks. Events in order: `forward` with (tokens, weights, losses),
    `update` with the rates that the optimizer used, `restored` with the number of earlier updates.

    The run begins with a dry run, as on a GPU. A save by the clock is due at every step, if the config has such saves.
    """
    from fmscale.data.loader import Loader
    from fmscale.train.engine.deepspeed import DeepSpeedEngine
    from fmscale.train.run import run_training
    from fmscale.train.saving import Saving

    events: list[Event] = []
    config = load_config(path, overrides)

    def forward(self: Any, real: Callable[..., Any], rows: Any, context: Any = None) -> Any:
        loss = real(self, rows, context)
        events.append(("forward", (rows.tensors["tokens"].clone(), rows.weights.clone(), loss.by_sample[0].clone())))
        return loss

    def restored(self: Any, real: Callable[..., Any], updates: int) -> None:
        events.append(("restored", updates))
        real(self, updates)

    def following(self: Any, real: Callable[..., Any]) -> Any:
        self.stall_seconds += STALL
        return real(self)

    def stepped(self: Any, real: Callable[..., Any], *args: Any) -> Any:
        update = real(self, *args)
        events.append(("update", [group["lr"] for group in self._base.param_groups]))
        return update

    restart_numbers()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, around in (
            (DeepSpeedEngine, "forward", forward),
            (DeepSpeedEngine, "step", stepped),
            (DeepSpeedEngine, "restored", restored),
            (Loader, "__next__", following),
        ):
            patch.setattr(owner, name, partialmethod(around, getattr(owner, name)))
        patch.setattr("fmscale.train.run.dry_forwards", lambda *args: 1)
        # A constant replaces the clock.
        patch.setattr(Saving, "clock_due", config.checkpoint.every_seconds is not None)
        run_training(config, show=lambda record: None, event=lambda record: None)
    return events
