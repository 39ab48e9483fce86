"""Checkpoints that stay: the last k, every n-th, the last verified, the pinned, and their references."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist import retention, worker
from fmscale.checkpoint.persist.retention import expired, mark_verified
from fmscale.checkpoint.read.verify import verify
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import Conflict, StoreError
from fmscale.store.log.retirement import pin, retire
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, Fleet, Tensors, assert_restores, restore_in

KEPT = CheckpointConfig(keep_last=2, grace_seconds=0.0, incremental=False)


def entry(number: int, step: int, kind: str = "checkpoint") -> Any:
    return SimpleNamespace(number=number, kind=kind, body={"step": step})


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.integers(1, 5),
    st.none() | st.integers(1, 7),
    st.sets(st.integers(0, 11)),
    st.sets(st.integers(0, 11)),
)
def test_what_may_go(
    steps: list[int], keep_last: int, keep_every: int | None, marked: set[int], pinned: set[int]
) -> None:
    live = [entry(i, step) for i, step in enumerate(steps)] + [entry(99, 1, "commit")]
    pins = {n: {"verified"} for n in marked if n < len(steps)}
    for n in pinned & set(range(len(steps))):
        pins[n] = pins.get(n, set()) | {"me"}
    old = expired(live, pins, keep_last=keep_last, keep_every=keep_every)
    kept = [n for n in range(len(steps)) if n not in old]
    verified = sorted(n for n in marked if n < len(steps))
    for n in range(len(steps)):
        must = n >= len(steps) - keep_last or n in verified[-1:] or n in pinned
        must |= keep_every is not None and steps[n] % keep_every == 0
        assert (n in kept) == must


def steps_of(url: str) -> list[int]:
    return [one.step for one in list_checkpoints(open_store(url), RUN)]


def folders(url: str) -> list[int]:
    """Steps with data files."""
    keys = [info.key for info in open_store(url).list_objects(f"runs/{RUN}/checkpoints")]
    return sorted({int(key.split("/")[3].split("-")[0]) for key in keys if key.endswith("safetensors")})


def test_the_last_and_every_nth_stay_and_the_rest_is_deleted(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, config=replace(KEPT, keep_every=40)) as fleet:
        for step in range(10, 110, 10):
            fleet.saved(step)
    assert steps_of(url) == folders(url) == [40, 80, 90, 100]
    assert_restores(url, 40, which=40)


def test_the_last_verified_one_stays_until_another_is(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=KEPT) as fleet:
        for step in range(1, 8):
            fleet.saved(step)
            if step in (2, 6):
                store = open_store(url)
                found = list_checkpoints(store, RUN)[-1]
                assert verify(store, found) == ([], True)
                mark_verified(run_log(store, RUN), found.entry)
            expected = {4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6], 7: [6, 7]}
            assert steps_of(url) == folders(url) == expected.get(step, [*range(max(1, step - 1), step + 1)])
    assert [one.verified for one in list_checkpoints(open_store(url), RUN)] == [True, False]
    with pytest.raises(Conflict):
        retire(run_log(open_store(url), RUN), [list_checkpoints(open_store(url), RUN)[0].entry], lambda e: [])


def test_what_somebody_pinned_stays(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=KEPT) as fleet:
        fleet.saved(1)
        pin(run_log(open_store(url), RUN), [list_checkpoints(open_store(url), RUN)[0].entry], "evaluation")
        for step in range(2, 6):
            fleet.saved(step)
    assert steps_of(url) == folders(url) == [1, 4, 5]


def test_what_a_kept_one_refers_to_stays(tmp_path: Path, in_thread: None) -> None:
    tensors: Tensors = {
        ("moves", "weight"): ("float32", (100, 200)),
        ("rests", "weight"): ("float32", (100, 200)),
    }
    url = str(tmp_path / "store")
    config = replace(KEPT, incremental=True, keep_last=1, complete_every=4)
    with Fleet(url, tensors=tensors, ranks=1, seed=None, config=config) as fleet:
        for step in range(1, 5):
            fleet.saved(step, changed=lambda piece: piece.name == "moves")
            assert steps_of(url) == [step]
            assert folders(url) == sorted({1, step}), "the first has what rests"
            found, [pieces] = restore_in(url, 1, tensors=tensors, seed=None)
            assert [one.step for one in found if one is not None] == [step]
            assert not pieces[1].tensor.any()
        fleet.saved(5)
        assert folders(url) == [5], "the complete one needs none; what was withheld is deleted with the last"


def test_nothing_is_deleted_within_the_grace_time(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1, config=replace(KEPT, grace_seconds=3600.0)) as fleet:
        for step in range(1, 6):
            fleet.saved(step)
    assert steps_of(url) == [4, 5]
    assert folders(url) == [1, 2, 3, 4, 5]


def test_a_failed_clean_up_fails_no_save(tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise StoreError("the listing failed", remedy="")

    url = str(tmp_path / "store")
    monkeypatch.setattr(worker, "tidy", broken)
    with Fleet(url, ranks=1, config=KEPT) as fleet:
        for step in range(1, 5):
            fleet.saved(step)
        monkeypatch.undo()
    assert steps_of(url) == [1, 2, 3, 4]


def test_a_retired_folder_is_looked_at_once(tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletion does not repeat at every later save."""
    swept: list[str] = []
    monkeypatch.setattr(retention, "_sweep", lambda _, folders: swept.extend(folders))
    config = CheckpointConfig(keep_last=1, grace_seconds=0.0, incremental=False)
    with Fleet(str(tmp_path / "store"), ranks=1, config=config) as fleet:
        for step in range(1, 6):
            fleet.saved(step)
    assert len(swept) == len(set(swept)) == 4
