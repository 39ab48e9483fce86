"""Rows of a run's steps from its checkpoints, and the steps that `dataset trace` derives from them."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fmscale.checkpoint.catalog import list_checkpoints
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.piece import whole
from fmscale.checkpoint.saver import Saver
from fmscale.cli.main import build_app
from fmscale.config import CheckpointConfig
from fmscale.data.open import open_loader
from fmscale.errors import ConfigError
from fmscale.runtime.world import World
from fmscale.store.log.lease import acquire
from fmscale.store.log.retirement import retire
from fmscale.store.open import open_store
from fmscale.train.recorded_schedule import recorded_schedule, trained_samples
from tests.helpers.corpus import T, store_corpus

RUN = "demo"


def save(url: str, *stands: tuple[int, int, int]) -> None:
    """For each entry a checkpoint after that many steps and samples, of a job with that micro_batch on two ranks."""
    lease = acquire(run_log(open_store(url), RUN), "test").number
    world = World()
    saver = Saver(url, RUN, world=world, lease=lease, config=CheckpointConfig(keep_last=9))
    for step, k, micro_batch in stands:
        batch = {"global_batch": None, "micro_batch": micro_batch, "accumulation": 1, "uneven": "refuse"}
        meta = {"step": step, "loader": {"k": k}, "config": {"batch": batch}, "world_size": 2}
        saver.save(step, [whole("w", torch.zeros(4))], meta, wait=True)
        saver.fence()
    assert {report.state for report in saver.close(60.0)} == {"acknowledged"}


def test_the_batch_of_each_step_is_that_of_the_job_that_took_it(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store = open_store(url)
    assert recorded_schedule(store, RUN) is None
    save(url, (3, 24, 4), (5, 40, 4))
    made = recorded_schedule(store, RUN)
    assert made is not None
    assert made.schedule == ((0, 8),)
    assert trained_samples(store, RUN) == range(40), "the meta has no train section"
    save(url, (7, 48, 2), (9, 56, 2))
    made = recorded_schedule(store, RUN)
    assert made is not None
    assert [made.batch(step) for step in range(9)] == [8] * 5 + [4] * 4
    assert [made.kappa(step) for step in (3, 5, 7, 9)] == [24, 40, 48, 56]
    between = next(one for one in list_checkpoints(store, RUN) if one.step == 5)
    retire(run_log(store, RUN), [between.entry], lambda entry: [])
    with pytest.raises(ConfigError, match=r"changed its global batch.*sample 24 after step 3"):
        recorded_schedule(store, RUN)


def trace(url: str, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["dataset", "trace", "--store", url, "--run", RUN, *words])
    return result.exit_code, result.output


def test_the_trace_of_a_step_has_the_samples_of_the_step_that_the_metrics_call_so(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store_corpus(open_store(url))
    with open_loader(
        open_store(url), dataset="corpus", sequence_length=T, batch=8, seed=3, run=RUN, document_ids=True
    ) as loader:
        batches = [next(loader) for _ in range(3)]
    status, output = trace(url, "--step", "1")
    assert (status, "Give --batch" in output) == (2, True)
    save(url, (3, 24, 4))
    for number, batch in enumerate(batches):  # the metrics of the first step say 1
        status, output = trace(url, "--step", str(number + 1), "--json")
        found = json.loads(output)
        assert (status, {one["step"] for one in found}) == (0, {number + 1})
        assert sorted({one["k"] for one in found}) == sorted(batch.k.tolist())
    assert trace(url, "--step", "2", "--batch", "8", "--json") == trace(url, "--step", "2", "--json")
    status, output = trace(url, "--step", "2", "--batch", "4")
    assert status == 2
    assert "--batch is not the global batch of the run" in output
    status, output = trace(url, "--document", found[0]["document"], "--steps", "3", "--json")
    assert status == 0
    assert 3 in {one["step"] for one in json.loads(output)}
    assert 3 not in {
        one["step"] for one in json.loads(trace(url, "--document", found[0]["document"], "--steps", "2", "--json")[1])
    }
    assert trace(url, "--step", "0")[0] == 2
