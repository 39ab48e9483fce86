"""Sinks in a whole run: one that fails, one of the user's own, TensorBoard's curves over a resume."""

import io
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fmscale.config import load_config
from fmscale.errors import ConfigError
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.train.run import run_training
from tests.helpers.own import Kept
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, steps_of, train_here, write_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def path(store: str, tmp_path: Path) -> Path:
    return write_config(tmp_path, store)


def train_logged(rank: int, size: int, path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`train_here`, and the warnings about sinks."""
    told = io.StringIO()
    logging.getLogger("fmscale.runtime.sinks").addHandler(logging.StreamHandler(told))
    outcome = train_here(rank, size, path, overrides)
    return {**outcome, "told": told.getvalue().splitlines()}


@pytest.mark.slow
def test_a_sink_that_fails_does_not_end_a_run_and_a_resumed_run_goes_on_in_the_others(
    path: Path, tmp_path: Path
) -> None:
    good, bad = Kept(path=str(tmp_path / "good")), Kept(path=str(tmp_path / "bad"), fails=("step", "close"))
    own = [f"{{kind: 'tests.helpers.own:Kept', path: {kept.path}, fails: {list(kept.fails)}}}" for kept in (good, bad)]
    board = ["{kind: tensorboard}"] if find_spec("tensorboard") else []
    sinks = f"metrics.sinks=[{', '.join(['{kind: jsonl}', *own, *board])}]"
    first = run_ranks(train_logged, 1, str(path), (sinks, "train.steps=4", "train.log_every=3"), timeout=120)[0]
    again = run_ranks(train_logged, 1, str(path), (sinks, "train.steps=6", "checkpoint.every=1"), timeout=120)[0]
    for outcome in (first, again):
        assert outcome["complete"]
        [message] = outcome["told"]
        assert message.startswith("the sink tests.helpers.own:Kept fails: OSError: no step today")
        assert (outcome["shown"], outcome["events"], outcome["phases"]) == ([], [], []), "no sink console"
    calls = good.calls
    assert [value["first_step"] for method, value in calls if method == "open"] == [0, 4]
    assert [value for method, value in calls if method == "close"] == ["complete", "complete"]
    records = [value for method, value in calls if method == "step"]
    assert records == [steps_of(tmp_path / "run")[step] for step in range(1, 7)]
    whole = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert [value for method, value in calls if method == "event"] == [one for one in whole if "event" in one]
    reads = events_of(tmp_path / "run", "reads")
    assert [event["step"] for event in reads] == [4, 6]
    assert reads[0]["read_bytes"] > 0
    assert (reads[0]["bad_cached"], reads[0]["bad_stored"], reads[0]["cached_bytes"]) == (0, 0, 0)
    if board:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        assert [(e.step, e.wall_time) for e in shown.Scalars("loss")] == [(r["step"], r["time"]) for r in records]


def test_a_sink_without_its_package_is_told_before_the_run(path: Path) -> None:
    missing = [kind for kind in ("tensorboard", "wandb", "mlflow") if find_spec(kind) is None]
    if not missing:
        pytest.skip("all packages are installed")
    with pytest.raises(ConfigError, match=rf"metrics\.sinks\.1 needs a package .* found '{missing[0]}'"):
        run_training(
            load_config(path, (f"metrics.sinks=[{{kind: jsonl}}, {{kind: {missing[0]}}}]",)), show=print, event=print
        )
