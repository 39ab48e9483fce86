"""Ingest without a writable place: real file systems that are full or read-only, and a bucket without rights."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmscale.data.ingest import ingest
from fmscale.errors import AccessDenied, DataError, StoreFull, StoreUnavailable
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.open import open_store
from tests.data.ingest.corpora import contents, documents, lines, put, sentences
from tests.helpers.disks import mounted
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.s3_server import S3Server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "2m") as path:
        yield path


def job(inputs: Path, store: Path, **more: Any) -> dict[str, Any]:
    return {
        "paths": [str(inputs)],
        "store": str(store),
        "dataset": "d",
        "tokenizer": "bytes",
        "unit_bytes": 200_000,
        **more,
    }


def corpus(folder: Path, count: int) -> Path:
    put(folder / "a.jsonl", lines(sentences("line", count)))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_store_keeps_what_it_has_and_the_job_goes_on_when_there_is_space(
    disk: Path, tmp_path: Path, workers: int
) -> None:
    first = corpus(tmp_path / "first", 10)
    more = corpus(tmp_path / "more", 7000)  # 1.4 MB, as tokens of two bytes 2.8 MB
    ingest(**job(first, disk / "store", scratch=tmp_path))
    (entry,) = open_dataset(open_store(str(disk / "store")), "d").commits()
    with pytest.raises(StoreFull, match="full") as caught:
        ingest(**job(more, disk / "store", workers=workers, scratch=tmp_path))
    assert "Free space" in caught.value.remedy
    store = open_store(str(disk / "store"))
    (left,) = open_dataset(store, "d").commits()
    assert left.digest == entry.digest
    assert not verify_dataset(store, open_dataset(store, "d"))
    assert not list(disk.rglob(".fmscale-tmp-*")), "what was half written takes no space"
    assert not list(tmp_path.glob("fmscale-ingest-*")), "scratch was cleared"

    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    result = ingest(**job(more, disk / "store", workers=1, scratch=tmp_path))
    assert result.resumed > 0
    ingest(**job(first, tmp_path / "roomy"))
    whole = ingest(**job(more, tmp_path / "roomy", workers=1))
    assert (result.documents, result.tokens, result.job) == (whole.documents, whole.tokens, whole.job)
    assert contents(disk / "store") == contents(tmp_path / "roomy")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_scratch_folder_is_named(disk: Path, tmp_path: Path, workers: int) -> None:
    inputs = corpus(tmp_path / "in", 7000)
    arguments = job(inputs, tmp_path / "store", scratch=disk, unit_bytes=2 << 20, workers=workers)
    if workers == 2:  # two units, so that there are two processes
        put(inputs / "b.jsonl", (inputs / "a.jsonl").read_bytes())
    with pytest.raises(StoreFull, match="No space left") as caught:
        ingest(**arguments)
    assert str(disk) in str(caught.value.found)
    assert "another scratch directory" in caught.value.remedy
    assert not list(disk.iterdir())
    with pytest.raises(DataError, match="no dataset"):
        open_dataset(open_store(str(tmp_path / "store")), "d")
    assert ingest(**{**arguments, "scratch": tmp_path, "workers": 1}).new


def test_a_read_only_store_is_said_before_the_work(disk: Path, tmp_path: Path) -> None:
    inputs = corpus(tmp_path / "in", 10)
    ingest(**job(inputs, disk / "store"))
    before = contents(disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    told: list[str] = []
    put(inputs / "b.txt", "more")
    with pytest.raises(AccessDenied, match="Read-only file system") as caught:
        ingest(**job(inputs, disk / "store"), progress=lambda phase, *_: told.append(phase))
    assert "read_only" in caught.value.remedy
    assert "writing" not in told
    assert contents(disk / "store") == before


def test_wrong_credentials_are_said_before_the_work(
    s3: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = corpus(tmp_path / "in", 10)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-0123456789")
    told: list[str] = []
    with pytest.raises(AccessDenied) as caught:
        ingest(**{**job(inputs, tmp_path), "store": s3_url}, progress=lambda phase, *_: told.append(phase))
    assert "writing" not in told
    assert caught.value.remedy
    assert "another-secret" not in str(caught.value)


@pytest.mark.slow
def test_refusals_lost_answers_and_resets_of_a_store_cost_time_only(s3: S3Server, s3_url: str, tmp_path: Path) -> None:
    inputs = corpus(tmp_path / "in", 1500)
    with FaultProxy(s3.host, s3.port) as proxy:
        proxy.inject("503", seconds=1)
        proxy.inject("lose", count=5, method="PUT")
        proxy.inject("503-after", count=5, method="PUT")
        proxy.inject("reset", count=5, method="GET")
        behind = s3_url.replace(s3.endpoint, proxy.endpoint)
        result = ingest(**{**job(inputs, tmp_path), "store": behind}, workers=1)
        assert all(proxy.counters()[kind] > 0 for kind in ("503", "lose", "503-after", "reset"))
    ingest(**job(inputs, tmp_path / "store", workers=1))
    store = open_store(s3_url)
    assert (result.new, result.documents) == (True, 1500)
    assert documents(store, "d", "train") == documents(open_store(str(tmp_path / "store")), "d", "train")
    assert not verify_dataset(store, open_dataset(store, "d"))
    assert len(open_dataset(store, "d").commits()) == 1


@pytest.mark.slow
def test_a_store_that_stops_answering_is_given_up_in_time_and_the_job_goes_on(
    s3: S3Server, s3_url: str, tmp_path: Path
) -> None:
    """The deadline is the default minute."""
    inputs = corpus(tmp_path / "in", 1500)
    with FaultProxy(s3.host, s3.port) as proxy:
        behind = {**job(inputs, tmp_path), "store": s3_url.replace(s3.endpoint, proxy.endpoint)}

        def stop(phase: str, done: int, total: int) -> None:
            if phase == "writing" and done:
                proxy.inject("503", seconds=600)

        begin = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            ingest(**behind, workers=1, progress=stop)
        assert time.monotonic() - begin < 120
        assert caught.value.remedy
        with pytest.raises(DataError, match="no dataset"):
            open_dataset(open_store(s3_url), "d")
        proxy.clear()
        assert ingest(**behind, workers=1).documents == 1500
