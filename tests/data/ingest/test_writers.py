"""Any number of writers make the same dataset, and a second run completes a killed job."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.data.ingest import IngestResult, ingest
from fmscale.errors import ConfigError, DataError, RankError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from tests.data.ingest.corpora import (
    commit_bodies,
    contents,
    documents,
    lines,
    mixed,
    put,
    sentences,
    wait_for,
)

ROOT = Path(__file__).parents[3]
BIN = str(Path(sys.executable).parent)


def options(corpus: Path, store: Path | str, **more: Any) -> dict[str, Any]:
    """Arguments of a job of many units."""
    return {
        "paths": [str(corpus)],
        "store": str(store),
        "dataset": "d",
        "tokenizer": "bpe:320",
        "unit_bytes": 1500,
        "heldout": 0.2,
        **more,
    }


def command(job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "tests.helpers.ingester", "run", json.dumps(job)]


def said(result: IngestResult) -> dict[str, Any]:
    """The result of a job, without the fields that depend on its writers."""
    return {k: v for k, v in vars(result).items() if k not in ("writers", "seconds", "resumed")}


def writers() -> list[psutil.Process]:
    """Living writers of this process."""
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if "fmscale.data.ingest.worker" in one.cmdline()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[IngestResult, dict[str, str]]:
    """Result and store of a single writer."""
    store = tmp_path_factory.mktemp("alone") / "store"
    return ingest(**options(corpus, store, workers=1)), contents(store)


Alone = tuple[IngestResult, dict[str, str]]


def test_processes_make_what_one_writer_makes(corpus: Path, alone: Alone, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = ingest(**options(corpus, tmp_path / "store", workers=3), progress=lambda *p: told.append(p))
    assert [done for phase, done, _ in told if phase == "writing"][-1] == result.raw_bytes == told[-1][2]
    assert (result.writers, result.units > 10) == (3, True)
    assert said(result) == said(alone[0])
    assert contents(tmp_path / "store") == alone[1]
    assert not writers()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_mpi_ranks_make_what_one_writer_makes(corpus: Path, alone: Alone, tmp_path: Path, ranks: int) -> None:
    out = subprocess.check_output(
        [f"{BIN}/mpirun", "-n", str(ranks), *command(options(corpus, tmp_path / "store"))],
        cwd=ROOT,
        text=True,
        timeout=120,
    )
    result = IngestResult(**json.loads(out))
    assert result.writers == ranks
    assert said(result) == said(alone[0])
    assert contents(tmp_path / "store") == alone[1]


@pytest.mark.mpi
@pytest.mark.slow
def test_mpi_ranks_keep_the_records_that_one_writer_keeps(corpus: Path, tmp_path: Path) -> None:
    one, ranks = tmp_path / "one", tmp_path / "ranks"
    result = ingest(**options(corpus, one, workers=1, **RECORDS))
    line = [f"{BIN}/mpirun", "-n", "3", *command(options(corpus, ranks, **RECORDS))]
    subprocess.run(line, cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert contents(one) == contents(ranks)
    assert result.documents > 90


@pytest.mark.mpi
@pytest.mark.slow
def test_the_command_line_under_mpirun(tmp_path: Path) -> None:
    put(tmp_path / "in/a.txt", "text " * 100)
    put(tmp_path / "bad/latin.txt", b"caf\xe9")
    words = ["--store", str(tmp_path / "store"), "--dataset", "d", "--tokenizer", "bytes"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        line = [f"{BIN}/mpirun", "-n", "3", f"{BIN}/fmscale", "ingest", *more, *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    done = run(str(tmp_path / "in"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 1, "one rank speaks"
    done = run(str(tmp_path / "in"))
    assert done.returncode == 0
    assert done.stdout.count("nothing was done") == 1
    failed = run(str(tmp_path / "bad"), "--strict")
    assert failed.returncode != 0
    assert failed.stderr.count("not UTF-8") == 1
    assert "latin.txt" in failed.stderr
    refused = run(str(tmp_path / "in"), "--workers", "2")
    assert "Leave --workers out" in " ".join(refused.stderr.split())


@pytest.mark.mpi
@pytest.mark.slow
def test_an_mpi_rank_that_is_killed_ends_the_job_which_goes_on_when_run_again(
    corpus: Path, alone: Alone, tmp_path: Path
) -> None:
    job = options(corpus, tmp_path / "store")
    line = [f"{BIN}/mpirun", "-n", "3", *command(job)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "store/datasets/d/jobs"
    wait_for(lambda: len(list(records.glob("*/*.json"))) > 2 or process.poll() is not None, "units")
    ranks = [one for one in psutil.Process(process.pid).children(recursive=True) if "ingester" in str(one.cmdline())]
    python = [one for one in ranks if "mpi" not in one.name() and "hydra" not in one.name()]
    python[-1].kill()
    assert process.wait(timeout=60) != 0
    result = ingest(**job, workers=1)
    assert result.resumed > 2
    assert contents(tmp_path / "store") == alone[1]


def test_an_error_in_a_writer_arrives_as_the_error_it_was(tmp_path: Path) -> None:
    for i in range(30):
        put(tmp_path / f"in/{i:02d}.txt", "text " * 100)
    put(tmp_path / "in/17.txt", b"caf\xe9" * 50)
    with pytest.raises(DataError, match=r"not UTF-8 .*\(in work unit \d+, ") as caught:
        ingest(**options(tmp_path / "in", tmp_path / "store", workers=2, strict=True))
    assert "17.txt" in str(caught.value.found)
    with pytest.raises(DataError, match="no dataset"):
        open_dataset(open_store(str(tmp_path / "store")), "d")


def test_a_writer_that_is_killed_is_named_and_the_job_goes_on(corpus: Path, alone: Alone, tmp_path: Path) -> None:
    job = options(corpus, tmp_path / "store", workers=2)

    killed: list[psutil.Process] = []

    def kill_one(phase: str, done: int, total: int) -> None:
        """Act after the first finished unit."""
        if not killed and list((tmp_path / "store/datasets/d/jobs").glob("*/*.json")):
            killed.extend(writers())
            killed[0].kill()

    with pytest.raises(RankError, match="died while it worked on") as caught:
        ingest(**job, progress=kill_one)
    assert caught.value.found == "signal 9"
    assert "Run again" in caught.value.remedy
    result = ingest(**{**job, "workers": 1})
    assert result.resumed >= 1
    assert said(result) == said(alone[0])
    assert contents(tmp_path / "store") == alone[1]


def test_a_writer_that_cannot_start_leaves_no_other_behind(corpus: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def few_files(phase: str, done: int, total: int) -> None:
        """Room for the pipes of two writers."""
        if phase == "writing" and not done:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, limits[1]))

    try:
        with pytest.raises(OSError, match="Too many open files"):
            ingest(**options(corpus, tmp_path / "store", workers=12), progress=few_files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not writers()


RECORDS = {"kind": "records", "tokenizer": None}
"""Options of a job that keeps records."""


def sweep(tmp_path: Path, step: int, **more: Any) -> None:
    """Kill a job at its writes to the store; a second run completes it from any state."""
    corpus = tmp_path / "in"
    for i, text in enumerate(sentences("page", 6)):
        put(corpus / f"{i}.{'png' if more else 'md'}", text)
    job = options(corpus, "", unit_bytes=900, workers=1, heldout=0.3, **{"tokenizer": "bpe:300", **more})
    reference = tmp_path / "reference"
    ingest(**{**job, "store": str(reference)})
    line = [
        sys.executable,
        "-m",
        "tests.helpers.ingester",
        "sweep",
        json.dumps(job),
        str(tmp_path),
        str(step),
    ]
    out = subprocess.check_output(line, cwd=ROOT, text=True, timeout=300)
    found = [json.loads(one) for one in out.splitlines()]
    assert [one["killed"] for one in found] == [True] * (len(found) - 1) + [False]
    assert len(found) * step > 40, "writes were counted"
    commits = [one["commits"] for one in found]
    assert commits == sorted(commits), "a commit, once there, stays"
    assert set(commits) == {0, 1}
    for one in found:
        assert contents(Path(one["store"])) == contents(reference), one
        assert len(commit_bodies(open_store(one["store"]), "d")) == 1


def test_killed_at_a_write(tmp_path: Path) -> None:
    sweep(tmp_path, 13)


def test_killed_at_a_write_of_records(tmp_path: Path) -> None:
    sweep(tmp_path, 19, **RECORDS)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, RECORDS])
def test_killed_before_every_write(tmp_path: Path, more: dict[str, Any]) -> None:
    """The store before a write equals the store after the previous write."""
    sweep(tmp_path, 2, **more)


def kills(job: dict[str, Any], store: Backend, count: int, seed: int) -> None:
    """Start the job and kill its parent when it has stored a random number of objects, `count` times."""
    rng = random.Random(seed)
    for _ in range(count):
        process = subprocess.Popen(command(job), cwd=ROOT, stdout=subprocess.DEVNULL)
        wait_until(process, lambda: bool(store.list_names("datasets/d/jobs")))
        enough = objects(store) + rng.randrange(60)
        wait_until(process, partial(enough_objects, store, enough))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)


def objects(store: Backend) -> int:
    return sum(1 for _ in store.list_objects("datasets/d"))


def enough_objects(store: Backend, count: int) -> bool:
    return objects(store) >= count


def wait_until(process: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    """Wait for the condition, or for the end of the process."""
    wait_for(lambda: condition() or process.poll() is not None, "progress of the job")


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["local", "s3"], indirect=True)
def test_killed_again_and_again_with_two_writers(store_url: str, store: Backend, tmp_path: Path, corpus: Path) -> None:
    job = options(corpus, store_url, workers=2)
    kills(job, store, 4, seed=5)
    result = ingest(**job)
    assert result.documents == 141
    assert len(commit_bodies(store, "d")) == 1
    ingest(**options(corpus, tmp_path / "whole", workers=1))
    whole = open_store(str(tmp_path / "whole"))
    for split in ("train", "heldout"):
        assert documents(store, "d", split) == documents(whole, "d", split)


def test_writers_end_with_their_parent(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines(sentences("line", 6_000)))
    job = options(tmp_path / "in", tmp_path / "store", workers=2, tokenizer="bytes", unit_bytes=1 << 18)
    process = subprocess.Popen(command(job), cwd=ROOT, stdout=subprocess.DEVNULL)
    both = wait_for(lambda: len(kin := psutil.Process(process.pid).children()) == 2 and kin, "writers")
    process.kill()
    process.wait()
    psutil.wait_procs(both, timeout=30)
    assert not [one for one in both if one.is_running()]


def test_under_torchrun_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/a.txt", "text")
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "x",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="mpirun"):
        ingest(**options(tmp_path / "in", tmp_path / "store"))
