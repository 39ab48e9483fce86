"""A rank's cores, on a made tree of PCI devices, and its folder of compiled kernels."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.runtime import variables
from fmscale.runtime.placement import CACHES, bind, local_cpus, own_folder, settle

GPU = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)


@pytest.fixture
def allowed() -> Iterator[list[int]]:
    """CPUs that this process may use, two or more; restored afterwards, like its variables."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    yield sorted(cpus)
    variables.take_back()
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cpus)


def device(devices: Path, text: str) -> Path:
    (devices / "0000:1b:00.0").mkdir(parents=True)
    (devices / "0000:1b:00.0" / "local_cpulist").write_text(text)
    return devices


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-2,8,10-11\n", {0, 1, 2, 8, 10, 11}), ("5\n", {5}), ("\n", set()), ("0-1\n", {0, 1})]
)
def test_cpus_of_a_device(tmp_path: Path, text: str, cpus: set[int]) -> None:
    assert local_cpus("0000:1b:00.0", device(tmp_path, text)) == cpus
    assert local_cpus("0000:1c:00.0", tmp_path) == set()


def test_a_rank_gets_the_cores_beside_its_gpu_and_compiles_on_the_node(
    allowed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/chosen")
    devices = device(tmp_path / "devices", f"{allowed[0]},9000-9001\n")
    settle("cpu", devices)
    assert os.sched_getaffinity(0) == set(allowed)
    settle("cuda:3", devices)
    assert all(os.sched_getaffinity(int(thread)) == {allowed[0]} for thread in os.listdir("/proc/self/task"))
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / f"fmscale-{os.getuid()}" / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/chosen"
    variables.take_back()
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_user_who_bound_the_process_elsewhere_keeps_that(allowed: list[int]) -> None:
    os.sched_setaffinity(0, {allowed[0]})
    bind({allowed[1]})
    assert os.sched_getaffinity(0) == {allowed[0]}
    bind(set())
    assert os.sched_getaffinity(0) == {allowed[0]}


def test_a_folder_of_code_is_this_users_alone(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert own_folder(tmp_path) == folder
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="mode 777") as caught:
        own_folder(tmp_path)
    assert all(name in caught.value.remedy for name in CACHES)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="others can write"):
        own_folder(tmp_path)
