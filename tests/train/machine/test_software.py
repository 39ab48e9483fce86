"""Results of the kernels' self-test: judged, kept for one set of versions, and not kept after a failure to run."""

from pathlib import Path

import pytest
import torch

from fmscale.train.machine import software


def test_results_are_kept_for_the_same_versions_alone(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "kernels.json"
    assert software.read_results(cache, "a") == {}
    software.write_results(cache, "a", {"rope": 0.001})
    assert software.read_results(cache, "a") == {"rope": 0.001}
    assert software.read_results(cache, "b") == {}
    software.write_results(cache, "b", {"rope": "OutOfResources: shared memory"})
    assert software.read_results(cache, "a") == {"rope": 0.001}
    cache.write_text("[")
    assert software.read_results(cache, "a") == {}
    cache.write_text("[]")
    assert software.read_results(cache, "a") == {}


@pytest.mark.parametrize(
    ("error", "status"), [(0.001, "ok"), (0.5, "fail"), (float("inf"), "fail"), ("CompilationError: x", "fail")]
)
def test_a_wrong_kernel_fails(error: float | str, status: str) -> None:
    found = software.judge("rope", error, 0.03)
    assert (found.status, bool(found.remedy)) == (status, status == "fail")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_the_kernels_are_told_to_be_skipped(tmp_path: Path) -> None:
    (found,) = software.check_kernels(tmp_path / "kernels.json")
    assert found.status == "skip"
    assert "interpreter" in found.found
    assert not list(tmp_path.iterdir())


def test_a_driver_that_torch_cannot_use_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(software, "DRIVER", tmp_path / "version")
    assert [one.status for one in software.gpus()] == ["ok"]
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 580.1\nGCC\n")
    (found,) = software.gpus()
    assert found.status == "fail"
    assert "580.1" in found.found


def test_a_compiler_is_tried_and_not_only_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.compiler().status == "ok"
    (tmp_path / "g++").write_text("#!/bin/sh\ncat >/dev/null\necho 'x.h: fatal error: no such file' >&2\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = software.compiler()
    assert (found.status, found.found) == ("warn", "x.h: fatal error: no such file")
    (tmp_path / "g++").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.compiler().found == "there is no g++"
