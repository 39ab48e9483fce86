"""Loss spikes: the rule, and what becomes of a run whose data or learning rate makes one, also when it is killed."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist.retention import references
from fmscale.cli.main import build_app
from fmscale.config import SourceConfig, load_config
from fmscale.data.ingest import ingest
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan, Stage
from fmscale.data.provenance.delivery import order_hash
from fmscale.data.provenance.expected import expected_samples
from fmscale.data.sources import make_sources
from fmscale.data.views.mask import find_documents, of_sources
from fmscale.data.views.placement import open_placement
from fmscale.errors import ConfigError
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.retirement import retire
from fmscale.store.open import open_store
from fmscale.train.spikes import Spiked, check_spike, highest
from tests.helpers.ranks import RankDied, run_ranks
from tests.train.runs import T, delivered, events_of, steps_of, train_here, write_config

BATCH = 6
STEPS, EVERY = 50, 13
NEWEST = 39
"""The step of the newest checkpoint before the spike."""
FIRST, LAST = 42, 46
"""The spike is in one of these steps, counted from 1: by then the loss is small and even."""


def test_the_rule_is_a_median_and_a_robust_deviation() -> None:
    values = [float(value) for value in range(1, 10)]
    assert highest(values, 2.0) == pytest.approx(5 + 2 * 1.4826 * 2)
    assert highest([*values[:-1], 1e9], 2.0) == highest(values, 2.0)
    assert highest([2.0] * 9, 6.0) == pytest.approx(2 + 6 * 0.02), "equal values make no other a spike"


def test_a_run_keeps_the_checkpoints_that_it_may_go_back_to(tmp_path: Path) -> None:
    path = write_config(tmp_path, "nowhere")
    wrong = load_config(path, ("spike.policy=back", "spike.back=4"))
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_last 3"):
        check_spike(wrong)
    check_spike(load_config(path, ("spike.policy=back", "spike.back=3")))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, int]:
    """A store whose dataset has one document of noise among plain ones; a seed, and the step that it makes a spike."""
    root = tmp_path_factory.mktemp("poisoned")
    rng = random.Random(0)
    for i in range(60):
        (root / f"plain{i:02d}.txt").write_text("abcdefgh" * 60)
    (root / "noise.txt").write_text("".join(chr(rng.randint(33, 126)) for _ in range(100)))
    store = str(root / "store")
    ingest([str(root)], store=store, dataset="mixed", tokenizer="bytes", heldout=0.0, workers=1)
    backend = open_store(store)
    dataset = open_dataset(backend, "mixed")
    config = SourceConfig(dataset="mixed")
    for seed in range(500):
        [source] = make_sources(backend, [config], sequence_length=T + 1, seed=seed)
        noise = find_documents(dataset, split="train", where=of_sources(lambda name: "noise" in name), partial=True)
        rows = [row for pair in open_placement(dataset, source.view).rows_of(noise) for row in range(*pair)]
        plan = Plan([Stage(from_k=0, sources=(source,))])
        samples = plan.samples(np.arange(STEPS * BATCH, dtype=np.uint64))
        hit = sorted(set((np.flatnonzero(np.isin(samples.row, rows)) // BATCH + 1).tolist()))
        if len(hit) == 1 and FIRST <= hit[0] <= LAST:
            return store, seed, hit[0]
    raise AssertionError("no seed has the noise in the steps that are asked for")


def config_of(folder: Path, poisoned: tuple[str, int, int]) -> tuple[Path, tuple[str, ...]]:
    store, seed, _ = poisoned
    sources = "data.sources=[{dataset: mixed}]"
    own = (sources, f"data.seed={seed}", f"train.steps={STEPS}", "optimizer.lr=0.01", "model.dropout=0")
    return write_config(folder, store), (*own, "spike.window=24", f"checkpoint.every={EVERY}")


def planned(store: str, run: str) -> str:
    """Hash of the order that the run's log has."""
    backend = open_store(store)
    return order_hash(expected_samples(backend, OrderLog(run_log(backend, run)).plan, 0, STEPS * BATCH))


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(step, record["loss"], record["grad_norm"]) for step, record in sorted(steps_of(folder).items())]


def killed_going_back(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> Any:
    """`train_here`, killed when it restores the earlier checkpoint."""

    def kill(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.train.setup.restore", kill)
        return train_here(rank, size, path, overrides)


def test_a_step_with_other_data_is_a_spike_and_the_run_goes_back(
    poisoned: tuple[str, int, int], tmp_path: Path
) -> None:
    """The noise is banned, and an audit of what the model got finds each sample once."""
    store, _, bad = poisoned
    path, own = config_of(tmp_path, poisoned)
    [outcome] = run_ranks(train_here, 1, str(path), (*own, "spike.policy=back", "train.run=back"), timeout=120)
    assert outcome["complete"]
    [event] = events_of(tmp_path / "back", "spike")
    assert (event["step"], event["action"], event["to_step"]) == (bad, "back", NEWEST)
    plan = OrderLog(run_log(open_store(store), "back")).plan
    assert [ban.from_k for ban in plan.bans] == [NEWEST * BATCH]
    assert sum(stop - first for first, stop in plan.bans[0].rows) == (bad - NEWEST) * BATCH
    assert plan.spikes == 1
    assert order_hash(delivered(tmp_path / "back")) == planned(store, "back")
    assert [step for step, *_ in losses(tmp_path / "back")] == list(range(1, STEPS + 1))
    assert max(loss for step, loss, _ in losses(tmp_path / "back") if step >= FIRST) < event["loss"] / 2


@pytest.mark.slow
def test_a_kill_before_the_restore_loses_nothing(poisoned: tuple[str, int, int], tmp_path: Path) -> None:
    """The entry is durable: the next jobs, of one rank or two, take the same samples as a run without a kill. Two
    checkpoints back: the newest is retired, though it is whole.
    """
    store, _, bad = poisoned
    path, own = config_of(tmp_path, poisoned)
    own = (*own, "spike.policy=back", "spike.back=2", "spike.ban_steps=3")
    run_ranks(train_here, 1, str(path), (*own, "train.run=whole"), timeout=120)
    for run, size in (("killed1", 1), ("killed2", 2)):
        with pytest.raises(RankDied):
            run_ranks(killed_going_back, size, str(path), (*own, f"train.run={run}"), timeout=120)
        assert [found.step for found in list_checkpoints(open_store(store), run)] == [EVERY, 2 * EVERY]
        [first, *_] = run_ranks(train_here, size, str(path), (*own, f"train.run={run}"), timeout=120)
        assert (first["first_step"], first["complete"]) == (2 * EVERY, True)
    ours = {run: order_hash(delivered(tmp_path / run)) for run in ("whole", "killed1", "killed2")}
    assert set(ours.values()) == {planned(store, "whole")}
    assert losses(tmp_path / "killed1") == losses(tmp_path / "whole"), "the same numbers to the last bit"
    plan = OrderLog(run_log(open_store(store), "killed2")).plan
    assert [(ban.from_k, plan.spikes) for ban in plan.bans] == [((bad - 3) * BATCH, 1)]
    files = [str(file) for file in sorted((tmp_path / "killed2" / "delivery").glob("*.arrow"))]
    result = CliRunner().invoke(build_app(), ["dataset", "audit", f"{store}#killed2", *files])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_skipped_step_leaves_no_trace_and_is_skipped_again(
    poisoned: tuple[str, int, int], tmp_path: Path, stage: int
) -> None:
    """Two ranks agree. A job that goes on from a checkpoint before the step skips it without judging it anew."""
    store, _, bad = poisoned
    path, own = config_of(tmp_path, poisoned)
    run = f"skip{stage}"
    own = (*own, f"train.run={run}", f"train.zero_stage={stage}")
    [outcome, _] = run_ranks(train_here, 2, str(path), (*own, "spike.policy=skip", f"train.steps={bad}"), timeout=120)
    assert outcome["complete"]
    [event] = events_of(tmp_path / run, "spike")
    assert (event["step"], event["action"]) == (bad, "skip")
    record = steps_of(tmp_path / run)[bad]
    assert (record["applied"], record["loss"]) == (False, pytest.approx(event["loss"]))
    log = run_log(open_store(store), run)
    [entry] = [entry for entry in log.entries() if entry.kind == "skip"]
    assert entry.body["samples"] == [(bad - 1) * BATCH, bad * BATCH]
    # Without this checkpoint a job takes the step again, and without a policy the log alone says what is skipped.
    newest = list_checkpoints(open_store(store), run)[-1]
    retire(log, [newest.entry], references)
    run_ranks(train_here, 1, str(path), own, timeout=120)
    again = events_of(tmp_path / run, "spike")
    assert [(one["step"], one["action"], one["cause"]) for one in again[1:]] == [(bad, "skip", "the log says so")]
    assert [one["step"] for one in steps_of(tmp_path / run).values() if not one["applied"]] == [bad]
    assert len([entry for entry in log.entries() if entry.kind == "skip"]) == 1


def test_the_first_spike_stops_a_run_and_is_explained(poisoned: tuple[str, int, int], tmp_path: Path) -> None:
    store, _, bad = poisoned
    path, own = config_of(tmp_path, poisoned)
    with pytest.raises(Spiked) as told:
        run_ranks(train_here, 1, str(path), (*own, "spike.policy=stop", "train.run=stop"), timeout=120)
    error = str(told.value)
    assert f"step {bad} is a spike, and was not applied: its " in error
    assert f"samples {(bad - 1) * BATCH} to {bad * BATCH - 1}: mixed rows " in error
    assert f"fmscale run ban file://{store}#stop --samples {(bad - 1) * BATCH}-{bad * BATCH - 1}" in error
    assert [found.step for found in list_checkpoints(open_store(store), "stop")] == [EVERY, 2 * EVERY, NEWEST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "size", "step", "end"),
    [("skip", 2, 4, "spike.limit 2 is used up"), ("back", 1, 2, "there is no valid checkpoint to go back to")],
)
def test_a_learning_rate_that_explodes_ends_the_run(
    poisoned: tuple[str, int, int], tmp_path: Path, policy: str, size: int, step: int, end: str
) -> None:
    """The first update makes weights infinite, so each later loss is not a number and no policy helps."""
    path, own = config_of(tmp_path, poisoned)
    own = (*own, f"spike.policy={policy}", "spike.limit=2", "optimizer.lr=1e300", f"train.run=hot{policy}")
    with pytest.raises(Spiked, match=rf"^step {step} is a spike, .* is not finite; {end}"):
        run_ranks(train_here, size, str(path), own, timeout=120)
