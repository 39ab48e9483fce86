"""The batch scripts on a real Slurm: requeued before the time limit, not requeued after a failure, many writers."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmscale.runtime.failure import first_failure
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.train.compare import compare, read_history
from tests.helpers.slurm import Slurm
from tests.launch.training import FMSCALE, LAUNCH, environment, prepare, started, write_raw

pytestmark = pytest.mark.slow

SECONDS = 180.0
STEPS = "train.steps=24"
OTHER_SIZE = 1e-4
"""Relative difference of losses between one rank and two after 24 steps."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with run.yaml and its dataset."""
    folder = tmp_path_factory.mktemp("slurm")
    prepare(folder)
    return folder


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster, idle before and after."""
    yield cluster
    cluster.cancel_all()


def submitted(slurm: Slurm, folder: Path, *words: str) -> int:
    """Number of the job that sbatch queued; its log is FOLDER/NUMBER.log."""
    command = ["sbatch", "--parsable", f"--output={folder}/%j.log", *words]
    variables = environment(**slurm.environment)
    return int(subprocess.check_output(command, cwd=folder, env=variables, text=True, timeout=60))


def wait_until(what: str, done: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        said = log.read_text()[-4000:] if log.exists() else ""
        assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}\n{said}"
        time.sleep(0.1)


def steps_of(run: Path) -> list[int]:
    if not (run / "metrics.jsonl").exists():
        return []
    return [record["step"] for record in read_jsonl(run / "metrics.jsonl") if "loss" in record]


def test_a_job_saves_goes_back_into_the_queue_and_goes_on_with_a_node_less(folder: Path, slurm: Slurm) -> None:
    """It saves near its limit; meanwhile one of its two nodes is taken away."""
    run = folder / "runs" / "requeued"
    script = str(LAUNCH / "slurm" / "train.sbatch")
    job = submitted(slurm, folder, "--nodes=1-2", script, "run.yaml", "train.run=requeued", STEPS)
    log = folder / f"{job}.log"
    wait_until("two steps", lambda: len(steps_of(run)) >= 2, log)
    slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=lost")
    try:
        # the effect of `#SBATCH --signal=B:USR1@300` with 300 s left
        slurm.run("scancel", "--batch", "--signal=USR1", str(job))
        wait_until("a requeue", lambda: slurm.job(job)["Restarts"] == "1", log)
        outcome = json.loads((run / "outcome.json").read_text())
        assert (outcome["complete"], outcome["stop"], outcome["saved"]) == (False, "SIGUSR1", True)
        assert (outcome["last_step"] < 24, outcome["world_size"]) == (True, 2)
        wait_until("the end", lambda: slurm.job(job)["JobState"] in ENDED, log)
        assert slurm.job(job)["JobState"] == "COMPLETED", log.read_text()[-4000:]
    finally:
        slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    again = json.loads((run / "outcome.json").read_text())
    assert (again["complete"], again["first_step"], again["world_size"]) == (True, outcome["last_step"], 1)
    started([FMSCALE, "launch", "run.yaml", "train.run=straight", STEPS, "--procs-per-node", "2"], folder)
    found = compare(read_history(folder / "runs" / "straight"), read_history(run), tolerance=OTHER_SIZE)
    assert (found.same, found.steps) == (True, 24), found
    assert found.order_hashes is not None
    assert len(set(found.order_hashes)) == 1


def test_a_job_that_fails_keeps_its_status_and_is_not_requeued(folder: Path, slurm: Slurm) -> None:
    script = str(LAUNCH / "slurm" / "train.sbatch")
    job = submitted(slurm, folder, script, "run.yaml", "train.run=failed", "data.sources.0.dataset=nope")
    log = folder / f"{job}.log"
    wait_until("the end", lambda: slurm.job(job)["JobState"] in ENDED, log)
    seen = slurm.job(job)
    assert (seen["JobState"], seen["ExitCode"], seen["Restarts"]) == ("FAILED", "2:0", "0")
    report = first_failure(folder / "runs" / "failed")
    assert report is not None
    assert report["found"] == "nope"
    assert "nope" in log.read_text()


def test_nodes_write_a_dataset_together(folder: Path, slurm: Slurm, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    script = str(LAUNCH / "slurm" / "ingest.sbatch")
    where = ["--store", str(folder / "store"), "--dataset", "nodes", "--tokenizer", "bytes"]
    options = ["--nodes=2", "--cpus-per-task=1"]
    job = submitted(slurm, folder, *options, script, str(tmp_path / "raw"), *where)
    log = folder / f"{job}.log"
    wait_until("the end", lambda: slurm.job(job)["JobState"] in ENDED, log)
    assert slurm.job(job)["JobState"] == "COMPLETED", log.read_text()
    shown = started([FMSCALE, "dataset", "list", "--store", str(folder / "store"), "--json"], folder)
    sizes = {one["dataset"]: (one["documents"], one["tokens"]) for one in json.loads(shown)}
    assert sizes["nodes"] == sizes["text"]
