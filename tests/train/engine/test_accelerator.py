"""DeepSpeed computes on the run's device, not on the machine's default or the launcher's local rank."""

import os
import sys

import pytest
import torch

from fmscale.errors import ConfigError
from fmscale.runtime import variables
from fmscale.train.engine.accelerator import import_deepspeed
from tests.helpers.ranks import end_ranks, run_ranks
from tests.train.engines import config_of, make_engine, train


def on_cpu(rank: int, size: int) -> list[dict[str, str | None]]:
    """Variables that DeepSpeed reads, before, during and after a run; it refuses another device in this process."""
    names = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "DS_ACCELERATOR")

    def read() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "3"
    try:
        seen = [read()]
        deepspeed = import_deepspeed("cpu")
        seen.append(read())
        assert deepspeed.accelerator.get_accelerator().device_name() == "cpu"
        with pytest.raises(ConfigError, match="to compute on cuda:0") as caught:
            import_deepspeed("cuda:0")
        assert caught.value.found == "cpu"
        variables.take_back()
        return [*seen, read()]
    finally:
        del os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]


def test_it_reads_the_number_of_the_device_until_the_run_has_ended() -> None:
    launchers = {"LOCAL_RANK": None, "OMPI_COMM_WORLD_LOCAL_RANK": "3", "DS_ACCELERATOR": None}
    ours = {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "DS_ACCELERATOR": None}
    assert run_ranks(on_cpu, 1) == [[launchers, ours, launchers]]


def test_an_accelerator_that_contradicts_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(ConfigError, match="DS_ACCELERATOR contradicts the device of the run, which is cpu") as caught:
        import_deepspeed("cpu")
    assert caught.value.found == "cuda"


def imported(rank: int, size: int) -> set[str]:
    train(make_engine(config_of(0, "fp32"), rank, size), rank, size, range(1))
    return {"triton", "distutils"} & sys.modules.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels may run")
def test_a_step_without_a_gpu_imports_neither_triton_nor_compilers() -> None:
    """torch's compiler, which torch's optimizers import, and DeepSpeed would import Triton: 76 MB. DeepSpeed would also
    compile a C program to learn which extensions it can build.
    """
    end_ranks()
    assert run_ranks(imported, 1, timeout=120) == [set()]
