"""Settings of the config reach their places: a traced run, and settings that no run shows."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.config import load_config
from fmscale.data.ingest import ingest
from fmscale.errors import ConfigError
from fmscale.quickstart.heldout import Bits
from fmscale.quickstart.results import build_report
from fmscale.runtime.failure import Whereabouts
from fmscale.runtime.world import World
from fmscale.store.open import open_store
from fmscale.train import saving, session
from fmscale.train.compare import read_history
from fmscale.train.run import run_training
from fmscale.train.schedule import learning_rate
from tests.helpers.copy_tier import CopyTier
from tests.helpers.ranks import run_ranks
from tests.train.runs import T, events_of, make_corpus, steps_of, write_config
from tests.train.traced import STALL, Event, traced

STEPS, FORWARDS, LR = 5, 3, 0.003
OVERRIDES = (
    f"train.steps={STEPS}",
    f"batch={{global_batch: 6, micro_batch: {6 // FORWARDS}}}",
    "schedule={kind: wsd, warmup_steps: 1, decay_fraction: 0.4, final_fraction: 0.1}",
    "checkpoint={every: null, every_seconds: 1}",
    "model.vocab_size=512",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wiring")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return write_config(folder, make_corpus(folder))


@pytest.fixture(scope="module")
def events(path: Path) -> list[Event]:
    seen: list[Event] = run_ranks(traced, 1, str(path), OVERRIDES, timeout=120)[0]
    return seen


def test_a_step_that_weighs_nothing_comes_before_all_others(events: list[Event]) -> None:
    (name, (tokens, weights, _)), (update, rates), restored, following, *_ = events
    assert (name, update, following[0]) == ("forward", "update", "forward")
    assert tokens.shape == (6 // FORWARDS, T)
    assert not weights.any()
    assert set(rates) == {0.0}
    assert restored == ("restored", 0)
    assert following[1][1].any()


def test_the_optimizer_gets_the_rates_of_the_schedule(path: Path, events: list[Event]) -> None:
    rates = [value for name, value in events if name == "update"][1:]
    assert all(len(set(groups)) == 1 for groups in rates)
    wanted = [LR / 2, LR, LR, LR * 0.55, LR * 0.1]
    assert [groups[0] for groups in rates] == pytest.approx(wanted)
    schedule = load_config(path, OVERRIDES).schedule
    assert [learning_rate(schedule, LR, step, STEPS) for step in range(STEPS)] == pytest.approx(wanted)


def test_each_sources_loss_is_that_of_its_own_rows(folder: Path, events: list[Event]) -> None:
    """Content distinguishes rows: every row of sums has a plus, and no other row has a plus."""
    forwards = [value for name, value in events if name == "forward"][1:]
    assert len(forwards) == STEPS * FORWARDS
    mixed = 0
    for step, record in steps_of(folder / "run").items():
        tokens, weights, losses = (
            torch.cat(part) for part in zip(*forwards[(step - 1) * FORWARDS : step * FORWARDS], strict=True)
        )
        sums = (tokens == ord("+")).any(1)
        mixed += bool(sums.any() and not sums.all())
        for name, rows in (("loss/sums", sums), ("loss/prose", ~sums)):
            wanted = (losses[rows].sum() / weights[rows].sum()).item() if rows.any() else None
            assert record.get(name) == pytest.approx(wanted, rel=1e-5), (step, name)
    assert mixed


def test_the_clock_makes_a_save_due(folder: Path, events: list[Event]) -> None:
    """A due save has an event also while the previous save is being written: it is then skipped."""
    assert {event["step"] for event in events_of(folder / "run", "checkpoint")} == set(range(1, STEPS + 1))


def test_waiting_for_data_is_in_the_metrics_and_in_the_quickstarts_report(
    folder: Path, path: Path, events: list[Event]
) -> None:
    steps = list(steps_of(folder / "run").values())
    # The rows of a step are taken during the step before, those of the first right before it.
    for record, taken in zip(steps, [2, *[1] * (STEPS - 2), 0], strict=True):
        assert STALL * FORWARDS * taken <= record["data_stall"] <= STALL * FORWARDS * taken + record["seconds"]
    config = load_config(path, OVERRIDES)
    history = read_history(folder / "run")
    report = build_report(
        config,
        open_store(config.store.url),
        history,
        history,
        steps=STEPS,
        documents=[Bits(name="a", bytes=8, model=1.0, gzip=1, xz=1, primed=1)],
        completions=[],
        parameters=1,
        primed_bytes=8,
        warnings=[],
        corpus={},
    )
    seconds = sum(record["seconds"] for record in steps)
    assert report["data_stall_fraction"] == pytest.approx(sum(r["data_stall"] for r in steps) / seconds)


def test_a_checkpoint_of_another_tokenizer_is_refused(folder: Path, path: Path, events: list[Event]) -> None:
    store = load_config(path).store.url
    ingest([str(folder / "sums")], store=store, dataset="other", tokenizer="bpe:300", heldout=0.2, workers=1)
    overrides = (*OVERRIDES, "train.run=fork", f"train.resume=run@{STEPS}", "data.sources=[{dataset: other}]")
    with pytest.raises(ConfigError, match="another tokenizer"):
        run_ranks(traced, 1, str(path), overrides, timeout=120)


def keys_from_a_tier(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> set[str]:
    """Train with a tier that has all chunks; the keys that it was asked for."""
    config = load_config(path, overrides)
    tier = CopyTier(open_store(config.store.url))
    run_training(config, show=lambda record: None, event=lambda record: None, tiers=[tier])
    return {key for key, _ in tier.asked}


def test_samples_held_out_rows_and_a_restored_checkpoint_come_through_the_tiers_of_a_run(
    folder: Path, path: Path, events: list[Event]
) -> None:
    ingest([str(folder / "sums")], store=load_config(path).store.url, dataset="outside", heldout=0.5, workers=1)
    sets = "evaluation={every: 1, sets: [{dataset: outside, rows: 2}]}"
    overrides = (*OVERRIDES, "train.run=tiers", f"train.resume=run@{STEPS}", f"train.steps={STEPS + 1}", sets)
    [keys] = run_ranks(keys_from_a_tier, 1, str(path), overrides, timeout=120)
    for part in ("datasets/prose/", "datasets/sums/", "datasets/outside/", f"runs/run/checkpoints/{STEPS:010d}"):
        assert any(key.startswith(part) for key in keys), part


def test_limits_on_collectives_and_on_store_requests_are_the_configs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda *_, **options: given.update({name: options["deadline"]})

    monkeypatch.setattr(session, "init_distributed", keep("collective"))
    monkeypatch.setattr(session, "open_store", keep("request"))
    monkeypatch.setattr(saving, "Saver", keep("save"))
    config = load_config(path, ("train.comm_seconds=77", "store.deadline=33"))
    with ExitStack() as stack:
        saving.open_saver(session.meet(config, World(), Whereabouts(), stack), lease=1)
    assert given == {"collective": 77.0, "request": 33.0, "save": 33.0}
