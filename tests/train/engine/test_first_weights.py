"""A run's first weights: the same at any stage and world size; at stage 3 no rank ever has the whole model."""

import itertools
from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, make_engine


def first_state(rank: int, size: int, stage: int, precision: str) -> Any:
    """This rank's pieces before any step, and elements of parameters it held when the engine was made."""
    from fmscale.train.engine.deepspeed import DeepSpeedEngine

    held: list[int] = []

    class Watched(DeepSpeedEngine):
        def __init__(self, trained: torch.nn.Module, *args: Any, **options: Any) -> None:
            held.extend(p.numel() for p in trained.parameters())
            super().__init__(trained, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.engine.module.DeepSpeedEngine", Watched)
        engine = make_engine(config_of(stage, precision), rank, size)
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
def test_first_weights_are_the_same_at_any_stage_and_size_and_never_whole_on_a_rank_at_stage_3(precision: str) -> None:
    expected = whole(run_ranks(first_state, 1, 1, precision))
    assert len(expected) > 15
    for size, stage in ((1, 3), (2, 3), (3, 3), (2, 2)):
        ranks = run_ranks(first_state, size, stage, precision)
        found = whole(ranks)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), (size, stage)
        assert all(held == 0 if stage == 3 else held > 1000 for _, held in ranks), "elements at the engine's start"
