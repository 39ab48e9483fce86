"""`fmscale doctor` on stores that are good, slow, closed, unsafe and absent."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import AccessDenied, StoreFull, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.doctor.advice import advise
from fmscale.store.doctor.doctor import examine
from fmscale.store.doctor.measure import LARGE_BYTES, RANGE_BYTES, SMALL_BYTES, Measurement
from fmscale.store.doctor.probe import RECORD_KEY, probe
from fmscale.store.open import open_store
from tests.helpers.disks import mounted
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.s3_server import S3Server

EXPECTED = {
    ("put", SMALL_BYTES, 1),
    ("put_if_absent", SMALL_BYTES, 1),
    ("put", LARGE_BYTES, 1),
    ("put", LARGE_BYTES, 8),
    ("head", 0, 1),
    ("list", 0, 1),
    ("get", SMALL_BYTES, 1),
    ("range", RANGE_BYTES, 1),
    ("range", RANGE_BYTES, 16),
    ("get", LARGE_BYTES, 1),
    ("get", LARGE_BYTES, 8),
}


def test_a_small_disk_is_measured_with_little_of_it_and_what_is_measured_with_is_gone(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "24m") as disk:
        (disk / "store").mkdir()
        seen: list[int] = []
        report = examine(
            str(disk / "store"), seconds=0.01, progress=lambda _: seen.append(shutil.disk_usage(disk).used)
        )
        assert max(seen) < 6 << 20, "an eighth, and small objects"
        assert any(one.operation == "put" and one.bytes > SMALL_BYTES for one in report.measurements)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 50_000))
        with pytest.raises(StoreFull):
            examine(str(disk / "store"), seconds=0.01)
        left = [path.name for path in (disk / "store").rglob("*") if path.is_file()]
        assert left == [RECORD_KEY]


def fmscale(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from fmscale.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def test_good_store_as_json(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    report = json.loads(fmscale("doctor", str(root), "--json", "--seconds", "0.1").stdout)
    assert report["writable"] is True
    assert report["capabilities"]["put_if_absent"] is True
    found = {(one["operation"], one["bytes"], one["streams"]): one for one in report["measurements"]}
    assert set(found) == EXPECTED
    for one in found.values():
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert one["requests"] >= one["streams"]
        assert (one["megabytes_per_second"] is None) == (one["bytes"] == 0)
    assert any("million tokens a second" in sentence for sentence in report["advice"])
    assert [path.name for path in root.iterdir()] == [RECORD_KEY], "the doctor cleans up"


def test_a_misspelt_folder_is_not_made(tmp_path: Path) -> None:
    for words in ([], ["--read-only"]):
        assert "Check the spelling" in fmscale("doctor", str(tmp_path / "stroe"), *words, status=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example() -> None:
    assert "fmscale doctor /data/store" in fmscale("doctor", "--help").stdout


@pytest.mark.slow
def test_real_s3(s3: S3Server, s3_store: Backend, s3_url: str) -> None:
    report = examine(s3_url, seconds=0.05)
    assert report.writable
    assert {(one.operation, one.bytes, one.streams) for one in report.measurements} == EXPECTED
    assert [one.key for one in s3_store.list_objects()] == [RECORD_KEY]
    assert s3.secret_key not in repr(report)


def test_latency_and_repeats_are_seen(s3: S3Server, s3_store: Backend, s3_bucket: str) -> None:
    s3_store.put("some/object", bytes(300_000))
    with FaultProxy(s3.host, s3.port) as proxy:
        proxy.set_latency(p50=0.05)
        proxy.inject("503", count=2, method="HEAD")
        prefix = s3_store.url.split("?")[0].rsplit("/", 1)[1]
        report = examine(s3.url(s3_bucket, prefix, proxy.endpoint), read_only=True, seconds=0.1)
    found = {(one.operation, one.streams): one for one in report.measurements}
    assert found["get", 1].p50_ms > 50
    assert report.repeated == 2
    assert any("2 requests had to be repeated" in sentence for sentence in report.advice)
    assert not report.writable
    assert report.capabilities is None


def test_read_only_writes_nothing(local_store: Backend) -> None:
    local_store.put("a/small", b"1")
    local_store.put("a/large", bytes(LARGE_BYTES + 5))
    report = examine(local_store.url, read_only=True, seconds=0.05)
    assert {(one.operation, one.bytes, one.streams) for one in report.measurements} == {
        one for one in EXPECTED if not one[0].startswith("put")
    }
    assert [one.key for one in local_store.list_objects()] == ["a/large", "a/small"]


def test_store_that_denies_writing_is_examined_for_reading(local_store: Backend) -> None:
    local_store.put("a", bytes(1000))
    report = examine(f"{local_store.url}?read_only=true", seconds=0.05)
    assert report.measurements
    assert not report.writable
    assert any("writing was denied" in sentence for sentence in report.advice)


def test_empty_store_that_cannot_be_written(local_store: Backend) -> None:
    assert examine(local_store.url, read_only=True).measurements == ()


def test_unsafe_store_exits_with_1_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "racy").mkdir()
    done = fmscale("doctor", f"local://{tmp_path / 'racy'}", "--seconds", "0.05", status=1)
    assert "Do not write here" in done.stdout
    assert "can be written  no" in done.stdout


def test_wrong_credentials_are_an_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-98765")
    with pytest.raises(AccessDenied, match="AWS_SECRET_ACCESS_KEY"):
        examine(s3_url)
    done = fmscale("doctor", s3_url, status=2)
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "98765" not in done.stderr


def test_unreachable_store_is_an_error_in_time(s3: S3Server) -> None:
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable, match="connection refused"):
        examine(s3.url("bucket", endpoint="http://127.0.0.1:9"), deadline=2)
    assert time.monotonic() - begin < 2.5


def advice(**changes: Any) -> str:
    """The advice on a store in memory whose measurements or capabilities are changed."""
    store = open_store("memory://advice")
    sample = Measurement(
        operation="range", bytes=1000, streams=1, requests=9, p50_ms=5, p99_ms=5, megabytes_per_second=1.0
    )
    measured = [replace(sample, **one) for one in changes.pop("measured", [])]
    capabilities = replace(probe(store), **changes)
    return " ".join(advise(store, capabilities, measured, 0, ""))


def test_each_rule_of_advice() -> None:
    assert advice() == "A memory store ends with its process."
    assert "Listings lag" in advice(list_after_write=False)
    assert "Do not write here: two winners" in advice(put_if_absent=False, problem="two winners")
    assert "takes 90 ms where the median is 5 ms" in advice(measured=[{"p99_ms": 90}])
    assert "commit in larger portions" in advice(measured=[{"operation": "put_if_absent", "p50_ms": 900}])
    one, eight = {"operation": "get"}, {"operation": "get", "streams": 8, "megabytes_per_second": 4.0}
    assert "8 streams read 4.0 times as fast" in advice(measured=[one, eight])
    assert "times as fast" not in advice(measured=[one, {**eight, "megabytes_per_second": 1.2}])


def test_stages_are_reported(local_store: Backend) -> None:
    seen: list[str] = []
    local_store.put("x", b"12345")
    examine(local_store.url, read_only=True, seconds=0.01, progress=seen.append)
    assert seen[:2] == ["probe", "measure"]
    assert len(seen) == 2 + 7
