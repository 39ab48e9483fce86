"""`fmscale run`: bans and stages change what comes behind the newest checkpoint, and the past is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fmscale.checkpoint.format.names import run_log
from fmscale.cli.main import build_app
from fmscale.config import load_config
from fmscale.data.open import open_loader
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.plan.plan import Plan
from fmscale.data.sources import open_order
from fmscale.errors import LeaseLost
from fmscale.store.open import open_store
from fmscale.train.data import training_sources
from tests.train.runs import T, make_corpus, write_config
from tests.train.test_recorded_schedule import RUN, save

STEPS, BATCH = 3, 6
"""The newest checkpoint is behind these steps."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: str, tmp_path: Path) -> Path:
    """The config of a run that has begun, on a store of its own."""
    import shutil

    store = tmp_path / "store"
    shutil.copytree(corpus, store)
    path = write_config(tmp_path, str(store))
    loaded = load_config(path)
    backend, sources = open_store(str(store)), loaded.data.sources
    open_order(backend, RUN, training_sources(loaded, backend, sources), sources)
    return path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["run", *words])
    return result.exit_code, " ".join(result.output.split())


def plan_of(store: str) -> Plan:
    return OrderLog(run_log(open_store(store), RUN)).plan


def rows_at(plan: Plan, first: int, stop: int) -> set[Any]:
    samples = plan.samples(np.arange(first, stop, dtype=np.uint64))
    return set(zip(samples.source.tolist(), samples.row.tolist(), strict=True))


def test_steps_are_banned_behind_the_newest_checkpoint_alone(config: Path) -> None:
    store = str(config.parent / "store")
    address = f"{store}#{RUN}"
    save(store, (STEPS, STEPS * BATCH, BATCH // 2))
    before = plan_of(store)
    bad = rows_at(before, 24, 36)
    status, output = run("ban", address, "--steps", "5-6", "--reason", "a spike", "--stopped", "--json")
    assert status == 0, output
    assert {(one["from_sample"], one["change"], one["reason"]) for one in json.loads(output)} == {
        (18, "ban", "a spike")
    }
    after = plan_of(store)
    assert rows_at(after, 0, 18) == rows_at(before, 0, 18)
    assert not bad & rows_at(after, 18, 600)
    assert {(ban.source, row) for ban in after.bans for pair in ban.rows for row in range(*pair)} == bad
    with pytest.raises(LeaseLost):  # a job that works all the same
        OrderLog(run_log(open_store(store), RUN), lease=1).ban(0, [(0, 1)], 600)


def test_rows_and_documents_of_a_dataset_are_banned(config: Path) -> None:
    store = str(config.parent / "store")
    address = f"{store}#{RUN}"
    status, output = run("ban", address, "--dataset", "sums", "--rows", "3-4", "--reason", "wrong", "--stopped")
    assert status == 0, output
    traced = CliRunner().invoke(build_app(), ["dataset", "trace", address, "--step", "1", "--batch", "6", "--json"])
    document = next(one for one in json.loads(traced.output) if one["dataset"] == "prose")
    words = ("--dataset", "prose", "--id", document["document"], "--reason", "withdrawn", "--stopped")
    status, output = run("ban", address, *words)
    assert status == 0, output
    rows, documents = plan_of(store).bans
    assert (rows.source, rows.rows, rows.reason) == (1, ((3, 5),), "wrong")
    assert (documents.source, documents.reason) == (0, "withdrawn")
    assert any(first <= document["row"] < stop for first, stop in documents.rows)


def test_a_stage_gives_the_rest_of_a_run_another_mixture(config: Path) -> None:
    """`fmscale plan` shows it, and takes the config that has it."""
    store = str(config.parent / "store")
    save(store, (STEPS, STEPS * BATCH, BATCH // 2))
    before = plan_of(store)
    own = (str(config), f"train.run={RUN}", "data.sources.1.weight=3")
    status, output = run("stage", *own, "--from-step", "5", "--stopped")
    assert status == 0, output
    after = plan_of(store)
    assert [stage.from_k for stage in after.stages] == [0, 24]
    assert rows_at(after, 0, 24) == rows_at(before, 0, 24)
    shares = np.bincount(after.samples(np.arange(24, 224, dtype=np.uint64)).source).tolist()
    assert shares == [100, 100]
    result = CliRunner().invoke(build_app(), ["plan", *own, "--json"])
    found = json.loads(result.stdout)
    assert found["order_changes"] == [{"from_sample": 24, "change": "stage", "of": "prose 0.5, sums 0.5", "reason": ""}]
    assert not [problem for problem in found["problems"] if "other data" in problem["cause"]]


def test_what_would_change_the_past_is_refused(config: Path) -> None:
    store = str(config.parent / "store")
    address, stopped = f"{store}#{RUN}", ("--reason", "why", "--stopped")
    own = (str(config), f"train.run={RUN}", "data.sources.1.weight=3", "--stopped")
    status, output = run("ban", address, "--steps", "2", *stopped)
    assert (status, "no checkpoint that says the samples of its steps" in output) == (2, True)
    save(store, (STEPS, STEPS * BATCH, BATCH // 2))
    head = plan_of(store).log_head
    for words, cause in (
        (("ban", address, "--steps", "5", "--reason", "why"), "Stop the run's job"),
        (("ban", address, "--steps", "5", "--from-step", "2", *stopped), "would change the past"),
        (("ban", address, *stopped), "which rows to ban"),
        (("ban", address, "--steps", "5", "--samples", "3", *stopped), "which rows to ban"),
        (("ban", address, "--rows", "5", *stopped), "which rows to ban"),
        (("ban", address, "--rows", "5", "--dataset", "none", *stopped), "does not read this dataset"),
        (("ban", address, "--samples", "5-x", *stopped), "not a range of numbers"),
        (("ban", address, "--samples", "5-3", *stopped), "ends before it begins"),
        (("ban", f"{store}#dem", "--samples", "5", *stopped), "Did you mean demo?"),
        (("ban", f"{address}@3", "--samples", "5", *stopped), "changed as a whole"),
        (("ban", address, "--dataset", "sums", "--rows", "0-999999", *stopped), "rows outside source 1"),
        (("stage", *own, "--from-step", "3"), "step 3, sample 12; the checkpoint of step 3 goes on at sample 18"),
        (("stage", *own, "data.sequence_length=24"), "the rows of a run have one length"),
    ):
        status, output = run(*words)
        assert (status, cause in output) == (2, True), (words, output)
    plan = plan_of(store)
    assert (len(plan.stages), plan.bans) == (1, ())
    assert plan.log_head > head, "the verbs have taken the lease"


@pytest.mark.parametrize("on_corrupt", ["quarantine", "stop"])
def test_a_loader_goes_on_from_a_state_of_before_the_change(config: Path, on_corrupt: str) -> None:
    store = str(config.parent / "store")
    sources = load_config(config).data.sources

    def loader() -> Any:
        options = {"sequence_length": T + 1, "batch": BATCH, "seed": 0, "run": RUN, "on_corrupt": on_corrupt}
        return open_loader(store, sources=sources, **options)  # type: ignore[arg-type]

    with loader() as one:
        next(one)
        state = one.state_dict()
    assert state["k"] == BATCH
    status, output = run("ban", f"{store}#{RUN}", "--samples", "8-9", "--reason", "why", "--stopped")
    assert status == 0, output
    with loader() as two:
        two.load_state_dict(state)
        assert two.changed_from == 0
        batch = next(two)
    got = set(zip(batch.row_source.tolist(), batch.row.tolist(), strict=True))
    assert batch.k.min() == BATCH
    assert got == rows_at(plan_of(store), BATCH, 2 * BATCH)
