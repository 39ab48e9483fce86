"""Cores of a rank, and the bound on compilers."""

import os

import pytest
import torch

from fmscale.runtime import variables
from fmscale.train.engine.cores import bound_compilers, cores_of, threads

NAME = "TORCHINDUCTOR_COMPILE_THREADS"


def test_a_rank_has_its_part_of_the_launchers_cores_and_no_more_than_it_is_bound_to() -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    assert cores_of(1) == len(cores)
    assert cores_of(2) == len(cores) // 2
    assert cores_of(1000) == 1
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert cores_of(1) == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_threads_hold_inside_the_block_alone() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_compilers_are_bounded_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    bound_compilers(3)
    assert os.environ[NAME] == "3"
    variables.take_back()
    assert NAME not in os.environ
    monkeypatch.setenv(NAME, "7")
    bound_compilers(3)
    assert os.environ[NAME] == "7"
