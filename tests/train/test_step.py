"""The step: non-finite numbers, sources in the journal, and the model's inputs from a batch."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fmscale.data.batch import Microbatch, UnitDocuments
from fmscale.objectives import Inputs, Loss, NextToken
from fmscale.runtime.axes import Axis
from fmscale.runtime.collectives import Exchange, Facts, total
from fmscale.runtime.stop import Stop
from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, held, joined, make_engine, train


def forbidden(*_: Any, **__: Any) -> bool:
    """In place of DeepSpeed's own pass over all gradients."""
    raise AssertionError("all gradients were read once more")


def poisoned(rank: int, size: int, stage: int, precision: str) -> Any:
    """A step, then one with a weight that makes the loss infinite on rank 0, then the same step again. The test of the
    gradients' norm is the only one: another passes over all gradients and waits for a GPU.
    """
    engine = make_engine(config_of(stage, precision), rank, size)
    if stage:
        engine._engine.optimizer.has_overflow = forbidden
    before = train(engine, rank, size, range(1))
    held_before = held(engine, save=True)
    real = engine.forward

    def infinite(inputs: Inputs, context: Any = None) -> Loss:
        loss = real(inputs, context)
        return replace(loss, sum=loss.sum * (math.inf if rank == 0 else 1))

    engine.forward = infinite  # type: ignore[method-assign]
    bad = train(engine, rank, size, range(1, 2))
    held_after, updates = held(engine, save=True), engine.updates
    engine.forward = real  # type: ignore[method-assign]
    good = train(engine, rank, size, range(1, 2))
    return before, held_before, bad, held_after, updates, good


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_is_seen_and_not_applied(stage: int, precision: str) -> None:
    ranks = run_ranks(poisoned, 2, stage, precision, timeout=120)
    before, after = joined([rank[1] for rank in ranks]), joined([rank[3] for rank in ranks])
    assert all(torch.equal(after[key], values) for key, values in before.items())
    for _, _, bad, _, updates, good in ranks:
        assert not math.isfinite(bad[0][1])
        assert updates == 1
        assert math.isfinite(good[0][0])
        assert math.isfinite(good[0][1])


def facts_of(rank: int, size: int) -> Any:
    axis, reasons = Axis(rank=rank, size=size), (Stop.SIGTERM, Stop.SIGUSR1, Stop.NO)
    begun = Exchange.start(10.0 + rank, reasons[rank], save=rank == 2, failed=rank == 1)
    values = torch.tensor([1.0, float(rank)])
    mine = begun.finish()
    none = Exchange.start(1.5, Stop.NO, save=False).finish()
    return mine, none, total(values, axis).tolist()


def test_ranks_agree_on_tokens_stop_and_save() -> None:
    for mine, none, summed in run_ranks(facts_of, 3):
        assert mine == Facts(count=33.0, stop=Stop.SIGTERM, save=True, failed=True)
        assert none == Facts(count=4.5, stop=Stop.NO, save=False)
        assert summed == [3.0, 3.0]


def test_a_batch_becomes_inputs_and_the_labels_after_them() -> None:
    """Two real rows of 6 delivered tokens, documents [0, 4) and [4, 12) of one unit, and a filler."""
    documents = UnitDocuments(ends=np.array([4, 12]), offset=0, ids=None)
    batch = Microbatch(
        tokens=torch.arange(18).view(3, 6),
        k=np.array([0, 1], dtype=np.uint64),
        row_source=np.array([1, 0], dtype=np.uint16),
        row=np.array([0, 1], dtype=np.uint64),
        step=0,
        last_of_step=True,
        documents=[documents, documents],
        offsets=[0, 6],
    )
    rows = NextToken().collate(batch).to("cpu")
    given = {name: tensor.tolist() for name, tensor in rows.tensors.items()}
    assert given["tokens"] == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10], [12, 13, 14, 15, 16]]
    assert given["labels"] == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11], [13, 14, 15, 16, 17]]
    # token 4 begins a document: no earlier token may predict it
    assert rows.weights.tolist() == [[1, 1, 1, 0, 1], [1] * 5, [0] * 5]
    assert given["positions"] == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert given["cu_seqlens"] == [0, 4, 5, 10, 15]
    assert rows.source.tolist() == [1, 0, -1]
    assert rows.bounds.tolist() == [0, 5, 10, 15]
