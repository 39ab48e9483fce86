"""An objective is refused before training, if it lacks something."""

from typing import Any

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.objectives import Inputs, Loss, NextToken, Objective, SampleBatch, check_objective


class Whole(Objective):
    unit = "images"

    def collate(self, batch: SampleBatch) -> Inputs:
        raise AssertionError

    def __call__(self, model: Any, inputs: Inputs, context: Any) -> Loss:
        raise AssertionError


class Apart:
    """Not derived, but complete."""

    unit = "pairs"
    collate = Whole.collate
    before = Objective.before
    __call__ = Whole.__call__


def lacking(name: str) -> Any:
    """A derived class without the method, so that it has the stub of `Objective`."""
    return type("Lacking", (Objective,), {key: value for key, value in vars(Whole).items() if key != name})()


def test_complete_objectives_are_taken_as_they_are() -> None:
    for objective in (NextToken(), Whole(), Apart()):
        assert check_objective(objective) is objective
    assert Whole().before(torch.nn.Identity(), [], lambda rows: rows) is None


@pytest.mark.parametrize("name", ["collate", "__call__"])
def test_an_objective_without_a_method_is_refused(name: str) -> None:
    bare: Any = type("Bare", (), {"unit": "pairs", "before": Objective.before})()
    for objective in (lacking(name), bare):
        with pytest.raises(ConfigError, match="lacks the method") as caught:
            check_objective(objective)
        assert "fmscale.objectives.Objective" in caught.value.remedy
    with pytest.raises(ConfigError, match=f"lacks the method {name}"):
        check_objective(lacking(name))


@pytest.mark.parametrize("unit", [None, 3, "", "two words", "loss"])
def test_a_unit_is_a_word_that_no_record_has_yet(unit: Any) -> None:
    objective = Whole()
    objective.unit = unit
    with pytest.raises(ConfigError, match="lacks a word for the unit") as caught:
        check_objective(objective)
    assert repr(unit) in caught.value.cause
    assert caught.value.found == f"{__name__}.Whole"
