"""A run's first weights: the same at any stage and world size; at stage 3 no rank ever has the whole model."""

import itertools
from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, make_engine


def first_state(rank: int, size: int, stage: int, precision: str) -> Any:
    """This rank's pieces before any step, and elements of parameters it held when the engine was made."""
    from fmscale.train.engine import module

    held: list[int] = []

    class Watched(module.DeepSpeedEngine):
        def __init__(self, trained: torch.nn.Module, *args: Any, **options: Any) -> None:
            held.extend(p.numel() for p in trained.parameters())
            super().__init__(trained, *args, **options)

    real, module.DeepSpeedEngine = module.DeepSpeedEngine, Watched  # type: ignore[misc]
    try:
        engine = make_engine(config_of(stage, precision), rank, size)
    finally:
        module.DeepSpeedEngine = real  # type: ignore[misc]
    pieces = [(p.name, p.start, p.tensor.clone()) for p in engine.pieces(save=True) if p.state == "weight"]
    return pieces, sum(held)


def whole(ranks: list[Any]) -> dict[str, torch.Tensor]:
    """Each weight, from all ranks' pieces."""
    parts = sorted(itertools.chain(*(pieces for pieces, _ in ranks)), key=lambda piece: piece[:2])
    return {
        name: torch.cat([values for _, _, values in mine])
        for name, mine in itertools.groupby(parts, key=lambda piece: piece[0])
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_weights_are_the_same_at_any_stage_and_size(precision: str) -> None:
    expected = whole(run_ranks(first_state, 1, 1, precision))
    assert len(expected) > 15
    for size, stage in ((1, 3), (2, 3), (3, 3), (2, 2)):
        found = whole(run_ranks(first_state, size, stage, precision))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), (size, stage)


def test_at_stage_3_the_model_is_never_whole_on_a_rank() -> None:
    assert all(held > 1000 for _, held in run_ranks(first_state, 2, 2, "fp32"))
    assert all(held == 0 for _, held in run_ranks(first_state, 2, 3, "fp32"))
