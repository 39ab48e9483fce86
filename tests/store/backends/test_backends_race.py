"""put_if_absent under contention: one winner each, on every backend, from threads or processes."""

import uuid

import pytest

from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store
from tests.helpers.race import check_winners, race_processes, race_threads


def test_race_of_threads_in_memory() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    check_winners(open_store(url), race_threads(url, 16, [f"log/{n}" for n in range(40)]))


def test_race_of_processes_on_a_directory(local_store: Backend) -> None:
    winners = race_processes(local_store.url, 16, [f"log/{n}" for n in range(40)])
    check_winners(local_store, winners)
    assert [one.key for one in local_store.list_objects()] == sorted(winners)


def test_race_of_processes_on_s3(s3_url: str) -> None:
    check_winners(open_store(s3_url), race_processes(s3_url, 4, [f"log/{n}" for n in range(8)]))


@pytest.mark.slow
def test_full_race_of_processes_on_s3(s3_url: str) -> None:
    check_winners(open_store(s3_url), race_processes(s3_url, 16, [f"log/{n}" for n in range(40)]))
