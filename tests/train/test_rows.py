"""Rows taken ahead: the order of events in a step, a rank without rows, and collections on all ranks together."""

import gc
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import DataError
from fmscale.runtime.failure import first_failure
from fmscale.train.garbage import EVERY, collected_together
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, steps_of, train_here, write_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def traced(rank: int, size: int, path: str) -> list[str]:
    """Train four steps; sends of facts, waits for them, sums of records, and updates, in their order."""
    from fmscale.runtime.collectives import Exchange, Facts, total
    from fmscale.train import journal
    from fmscale.train.engine.deepspeed import DeepSpeedEngine

    seen: list[str] = []
    start, finish, update = Exchange.start, Exchange.finish, DeepSpeedEngine.step

    def started(*args: Any, **options: Any) -> Exchange:
        seen.append("send")
        return start(*args, **options)

    def finished(self: Exchange) -> Facts:
        if self._work:
            seen.append("wait")
        return finish(self)

    def updated(self: DeepSpeedEngine, rate: float, *rest: Any) -> Any:
        seen.append("update")
        return update(self, rate, *rest)

    def totalled(*args: Any) -> Any:
        seen.append("records")
        return total(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "start", started)
        patch.setattr(Exchange, "finish", finished)
        patch.setattr(DeepSpeedEngine, "step", updated)
        patch.setattr(journal, "total", totalled)
        train_here(rank, size, path, ("train.steps=4", "train.log_every=1", "checkpoint.every=null"))
    return seen


def test_facts_of_a_step_are_there_before_the_update_of_the_step_before(store: str, tmp_path: Path) -> None:
    seen, _ = run_ranks(traced, 2, str(write_config(tmp_path, store)), timeout=120)
    # The records of a step are summed then too, but for those of the first and the last, and of the end.
    assert seen == [
        *("send", "wait", "send", "wait", "update", "records"),
        *("send", "wait", "update", "send", "records", "wait", "update"),
        *("records", "update", "records", "records"),
    ]
    [event] = events_of(tmp_path / "run", "first_step")
    assert event["seconds"] == pytest.approx(sum(event["phases"].values()))
    assert {"imports", "meeting", "building the model", "first step"} <= event["phases"].keys()


def without_rows(rank: int, size: int, path: str) -> str:
    """Rank 1 has no rows for the third step."""
    from fmscale.data.sample_loader import SampleLoader

    taken: list[bool] = []
    take = SampleLoader.__next__

    def third_fails(self: SampleLoader[Any]) -> Any:
        if rank and sum(taken) == 2:
            raise DataError("the rows of step 3 cannot be read", remedy="Look at the store.")
        batch = take(self)
        taken.append(batch.last_of_step)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleLoader, "__next__", third_fails)
        try:
            return str(train_here(rank, size, path, ("train.run=lost",)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def test_a_rank_without_rows_ends_all_after_the_step_before_and_is_named(store: str, tmp_path: Path) -> None:
    first, second = run_ranks(without_rows, 2, str(write_config(tmp_path, store)), timeout=120)
    assert second.startswith("DataError: the rows of step 3 cannot be read")
    assert first.startswith("RankError: rank 0 waited")
    assert "rank 1 on " in first
    assert "the rows of step 3 cannot be read" in first
    assert sorted(steps_of(tmp_path / "lost")) == [1, 2]
    report = first_failure(tmp_path / "lost")
    assert report is not None
    assert (report["rank"], report["step"]) == (1, 3)


def test_garbage_is_collected_at_the_same_steps_and_the_schedule_comes_back() -> None:
    collections: list[str] = []

    def seen(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    assert gc.isenabled()
    with collected_together() as collect:
        gc.callbacks.append(seen)
        try:
            garbage: list[list[int]] = [[] for _ in range(100_000)]
            collect(EVERY - 1)
            assert (collections, len(garbage)) == ([], 100_000)
            collect(EVERY)
            assert collections == ["start", "stop"]
        finally:
            gc.callbacks.remove(seen)
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
