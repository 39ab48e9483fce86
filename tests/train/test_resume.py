"""A resumed run equals a run without a stop: to the bit at the same size, in the same order at any size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.checkpoint import catalog
from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.config import load_config
from fmscale.data.batch import Microbatch
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.provenance.delivery import order_hash
from fmscale.data.provenance.expected import expected_samples
from fmscale.errors import ConfigError
from fmscale.objectives import Inputs, NextToken
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.helpers.ranks import run_ranks
from tests.train.runs import (
    T,
    check_state,
    delivered,
    events_of,
    make_corpus,
    state_at_begin,
    steps_of,
    train_here,
    write_config,
)

EXACT = ("loss", "tokens", "lr", "grad_norm", "loss/prose", "loss/sums")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def go(size: int, path: Path, *overrides: str) -> dict[str, Any]:
    outcome: dict[str, Any] = run_ranks(train_here, size, str(path), overrides, timeout=120)[0]
    return outcome


def watched(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`train_here` with its `draws` of random weights, and the `order` of allocations for snapshots and of saves."""
    from fmscale.checkpoint.saver import Saver
    from fmscale.checkpoint.snapshot import snapshot
    from fmscale.checkpoint.snapshot.memory import SharedMemory

    draws, order = 0, []
    normal, save, memory = torch.Tensor.normal_, Saver.save, SharedMemory

    def drawn(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal draws
        draws += 1
        return normal(self, *args, **options)

    def allocated(size: int) -> Any:
        order.append("memory")
        return memory(size)

    def saved(self: Any, *args: Any, **options: Any) -> None:
        order.append("save")
        save(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", drawn)
        patch.setattr(snapshot, "SharedMemory", allocated)
        patch.setattr(Saver, "save", saved)
        outcome = train_here(rank, size, path, overrides)
    return {**outcome, "draws": draws, "order": order}


def exact(folder: Path) -> list[tuple[Any, ...]]:
    steps = steps_of(folder)
    return [(step, *(steps[step].get(name) for name in EXACT)) for step in sorted(steps)]


@pytest.mark.parametrize("size", [1, 2])
def test_resume_at_the_same_size_is_bit_exact(store: str, tmp_path: Path, size: int) -> None:
    """Dropout, accumulation of several forwards, two weighted sources. Weights are drawn in the first job alone, and no
    save allocates memory.
    """
    path = write_config(tmp_path, store)
    begun = run_ranks(watched, size, str(path), (f"train.run=whole{size}",), timeout=120)
    assert all(job["complete"] and job["draws"] > 10 for job in begun)
    assert all(job["order"] == ["memory", "save", "save", "save"] for job in begun)
    assert go(size, path, f"train.run=parts{size}", "train.steps=4")["last_step"] == 4
    resumed = run_ranks(watched, size, str(path), (f"train.run=parts{size}",), timeout=120)
    assert [job["draws"] for job in resumed] == [0] * size
    again = resumed[0]
    assert (again["first_step"], again["last_step"]) == (4, 8)
    found = catalog.list_checkpoints(open_store(store), f"parts{size}")
    assert [one.verified for one in found if one.step == 4] == [True], "every byte of it was read and is right"
    whole, parts = tmp_path / f"whole{size}", tmp_path / f"parts{size}"
    assert exact(parts) == exact(whole)
    assert len(exact(whole)) == 8
    columns = ["k", "source", "row", "digest", "pieces"]
    assert delivered(parts).select(columns).equals(delivered(whole).select(columns))
    assert order_hash(delivered(parts)) == order_hash(delivered(whole))


def test_dropout_is_on_and_seeded_anew_at_each_step(store: str, tmp_path: Path) -> None:
    """The test above cannot show this: without dropout there is nothing to restore."""
    path = write_config(tmp_path, store)
    go(1, path, "train.run=with", "train.steps=2")
    go(1, path, "train.run=without", "train.steps=2", "model.dropout=0")
    go(1, path, "train.run=other", "train.steps=2", "train.seed=1", "model.dropout=0")
    losses = [steps_of(tmp_path / name)[1]["loss"] for name in ("with", "without", "other")]
    assert len(set(losses)) == 3


def test_resume_at_other_sizes_and_stages_keeps_order_and_state(store: str, tmp_path: Path) -> None:
    """2 ranks stage 1 -> 3 ranks stage 3 -> 1 rank stage 2, with a batch of 7 rows, which 2 and 3 do not divide.

    Losses may differ by rounding only. Other groups of gradient sums change each fp32 sum of ~10^4 terms by a few units
    in the last place; AdamW's division by a small second moment enlarges this in the first steps. No dropout: its mask
    belongs to the place of a row among the ranks.
    """
    path = write_config(tmp_path, store)
    common = ("batch.global_batch=7", "batch.uneven=fill", "model.dropout=0")
    go(1, path, *common, "train.run=whole", "train.zero_stage=2")
    for size, stage, steps in ((2, 1, 3), (3, 3, 6), (1, 2, 8)):
        go(size, path, *common, "train.run=moved", f"train.zero_stage={stage}", f"train.steps={steps}")
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    columns = ["k", "step", "source", "row", "digest", "pieces"]
    assert delivered(moved).select(columns).equals(delivered(whole).select(columns))
    assert set(delivered(moved)["k"].to_pylist()) == set(range(56))
    resumed = events_of(moved, "resumed")
    assert [(one["world_size_then"], one["world_size"]) for one in resumed] == [(2, 3), (3, 1)]
    for name in ("loss", "grad_norm"):
        got, want = ([steps_of(run)[step][name] for step in range(1, 9)] for run in (moved, whole))
        torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def saved_by_two(request: pytest.FixtureRequest, store: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Config and overrides of a run that two ranks saved after 2 steps at stage 3."""
    path = write_config(tmp_path_factory.mktemp("saved"), store)
    precision = request.param
    common = ("batch.uneven=fill", f"train.precision={precision}", f"train.run=saved-{precision}", "train.steps=2")
    go(2, path, *common, "train.zero_stage=3")
    return path, common


@pytest.mark.parametrize(("size", "stage"), [(3, 3), (1, 1), (2, 0), (2, 2)])
def test_state_is_equal_to_the_bit_right_after_the_restore(
    store: str, saved_by_two: tuple[Path, tuple[str, ...]], size: int, stage: int
) -> None:
    path, common = saved_by_two
    ranks = run_ranks(state_at_begin, size, str(path), (*common, f"train.zero_stage={stage}"), timeout=120)
    saved = open_checkpoint(f"{store}#{load_config(path, common).train.run}@2")
    check_state(ranks, saved)
    assert {tensor.state for tensor in saved.manifest.tensors} == {"weight", "exp_avg", "exp_avg_sq"}


def test_hpz_over_more_ranks_than_a_node_has_is_refused_at_the_start(store: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, store)
    with pytest.raises(ConfigError, match="zero_hpz_partition_size must divide the ranks of each node"):
        go(1, path, "train.zero_stage=3", "train.zero_hpz_partition_size=2")


def test_a_fork_begins_a_new_run_with_the_state_of_another(store: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, store)
    go(1, path, "train.run=trunk", "train.steps=4")
    forked = go(1, path, "train.run=branch", "train.resume=trunk@3", "train.steps=6")
    assert forked["first_step"] == 3
    go(1, path, "train.run=trunk", "train.steps=6")
    assert exact(tmp_path / "branch") == exact(tmp_path / "trunk")[3:]
    backend = open_store(store)
    assert [one.step for one in catalog.list_checkpoints(backend, "branch")] == [6]


@pytest.mark.parametrize(
    ("resume", "cause"),
    [("never", "never, but the run has"), ("nosuch", "not there"), ("trunk2@77", "not there")],
)
def test_what_cannot_be_resumed_is_refused(store: str, tmp_path: Path, resume: str, cause: str) -> None:
    from fmscale.train.resume import choose_resume

    path = write_config(tmp_path, store)
    if not catalog.list_checkpoints(open_store(store), "trunk2"):
        go(1, path, "train.run=trunk2", "train.steps=2")
    run = "trunk2" if resume == "never" else "fresh"
    config = load_config(path, (f"train.run={run}", f"train.resume={resume}"))
    with pytest.raises(ConfigError, match=cause):
        choose_resume(config, open_store(store))


def test_a_folder_without_an_entry_is_said_when_a_run_begins(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fmscale.train.resume import choose_resume

    folder = "runs/lost/checkpoints/0000000007-00001"
    backend = open_store(store)
    backend.put(f"{folder}/manifest.arrow", b"its entry is gone")
    config = load_config(write_config(tmp_path, store), ("train.run=lost",))
    for first, lines in ((False, 0), (True, 1)):
        assert choose_resume(config, backend, first=first).which == "none"
        assert [message.startswith(folder) for message in caplog.messages] == [True] * lines


def train_swapped(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`train_here` with a `collate` that swaps the first two tokens of each row of the engine's inputs."""

    right = NextToken.collate

    def wrong(objective: NextToken, batch: Microbatch) -> Inputs:
        rows = right(objective, batch)
        order = torch.tensor([1, 0, *range(2, T)])
        return replace(rows, tensors={**rows.tensors, "tokens": rows.tensors["tokens"][:, order]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NextToken, "collate", wrong)
        return train_here(rank, size, path, overrides)


def test_what_the_engine_got_is_on_record_from_every_rank(store: str, tmp_path: Path) -> None:
    path, backend = write_config(tmp_path, store), open_store(store)
    for run, train in (("counted", train_here), ("swapped", train_swapped)):
        run_ranks(train, 2, str(path), (f"train.run={run}", "train.steps=1"), timeout=120)
        found = delivered(tmp_path / run)
        planned = expected_samples(backend, OrderLog(Log(backend, f"runs/{run}", RUN_KINDS)).plan, 0, 6)
        assert found["k"].to_pylist() == planned["k"].to_pylist()
        assert (order_hash(found) == order_hash(planned)) == (run == "counted")
