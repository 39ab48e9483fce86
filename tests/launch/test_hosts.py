"""A host is killed, or cut off, in the middle of a training on two hosts: the other's rank ends and names it, or goes
on alone where the number of nodes may change.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmscale.train.account import read_account
from tests.helpers.host_runs import HostRun, launch
from tests.helpers.net_hosts import NetHosts, refused
from tests.launch.training import SECONDS, prepare
from tests.train.runs import delivered, steps_of

pytestmark = pytest.mark.slow

ENDLESS = ("train.steps=1000000", "train.log_every=1000", "train.record_delivery=false", "train.comm_seconds=8")
ORDER = ["k", "source", "row", "digest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    prepare(folder)
    return folder


@pytest.fixture
def hosts() -> Iterator[NetHosts]:
    if reason := refused():
        pytest.skip(reason)
    with NetHosts(2) as hosts:
        yield hosts


def trains(run: HostRun, step: int) -> bool:
    assert all(launcher.poll() is None for launcher in run.launchers.values()), run.said("host1")[-4000:]
    return len(run.steps()) == 2 and min(run.steps()) >= step


def test_a_host_is_killed(folder: Path, hosts: NetHosts) -> None:
    run = launch(hosts, folder, "killed", "torchrun", ENDLESS)
    assert run.until(hosts, lambda: trains(run, 2), SECONDS)
    hosts.kill("host2")
    assert run.until(hosts, lambda: run.launchers["host1"].poll() is not None, SECONDS)
    last = run.said("host1").rpartition("fmscale launch: ended with status")[2]
    assert re.search(r"rank 0 on host1 lost another rank.*\n.*rank 1 on host2 told nothing for \d+ s: its host", last)


def test_a_host_is_cut_off(folder: Path, hosts: NetHosts) -> None:
    """Both ranks end by themselves, each with the other's host."""
    run = launch(hosts, folder, "cut", "torchrun", ENDLESS)
    assert run.until(hosts, lambda: trains(run, 2), SECONDS)
    hosts.cut("host2")
    assert run.until(hosts, lambda: len(run.ended) == 2, SECONDS)
    # Gloo's own limit ends the main thread, or the watchdog does: whichever of the two comes first.
    ends = "rank {} (ends, as|lost another rank:)"
    assert_said(
        hosts, run, "host1", rf"{ends.format(0)} rank 1 on host2 told nothing for \d+ s: its host gives no answer"
    )
    assert_said(hosts, run, "host2", rf"{ends.format(1)} the store on host1, .* gave no answer for \d+ s")


def assert_said(hosts: NetHosts, run: HostRun, host: str, words: str) -> None:
    """torchrun shows a rank's last lines after its end."""
    assert run.until(hosts, lambda: re.search(words, run.said(host)) is not None, SECONDS), run.said(host)


def test_a_run_goes_on_without_a_lost_node_in_the_same_order(folder: Path, hosts: NetHosts) -> None:
    steps = ("train.steps=60", "train.log_every=1", "checkpoint.every=4", "batch.uneven=fill")
    run = launch(hosts, folder, "elastic", "torchrun", steps, nodes="1:2")
    metrics = folder / "runs" / "elastic" / "metrics.jsonl"
    assert run.until(hosts, lambda: metrics.exists() and len(steps_of(metrics.parent)) > 8, SECONDS)
    hosts.kill("host2")
    assert run.until(hosts, lambda: run.launchers["host1"].poll() is not None, SECONDS)
    assert run.launchers["host1"].returncode == 0, run.said("host1")[-4000:]
    place = folder / "runs" / "elastic"
    outcome = json.loads((place / "outcome.json").read_text())
    assert (outcome["complete"], outcome["world_size"]) == (True, 1)
    account = read_account(place)
    assert [attempt.of("started")[0]["world_size"] for attempt in account.attempts] == [2, 1]
    assert [record["step"] for record in account.steps] == list(range(1, 61))
    found = delivered(place).select(ORDER)
    assert found.column("k").to_pylist() == list(range(8 * 60))
