"""A rank is killed by SIGKILL, as by the kernel where memory is short: the last words of a launch name it."""

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from fmscale.launch.signals import kill_tree

from fmscale.errors import FmscaleError
from fmscale.runtime.watched import read_watched
from tests.helpers.s3_server import free_ports
from tests.launch.training import FMSCALE, SECONDS, environment, prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    prepare(folder)
    return folder


def trains(folder: Path, launcher: "subprocess.Popen[str]") -> bool:
    """True once the ranks take steps."""
    assert launcher.poll() is None
    try:
        return all((state["step"] or 0) > 1 for state in read_watched(folder)[1])
    except FmscaleError:
        return False


def test_the_last_words_name_the_rank_and_the_signal(folder: Path) -> None:
    sets = ["train.run=killed", "train.steps=1000000", "train.log_every=1000", "--procs-per-node", "2"]
    command = [FMSCALE, "launch", "run.yaml", *sets, "--master-port", str(free_ports(1)[0])]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not trains(folder / "runs" / "killed", process):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            below = psutil.Process(process.pid).children(recursive=True)
            [second] = [one for one in below if one.environ().get("RANK") == "1" and "train" in one.cmdline()[2:3]]
            second.send_signal(signal.SIGKILL)
            said = process.communicate(timeout=SECONDS)[0]
        finally:
            kill_tree(process.pid)
    assert process.returncode
    last = said[said.index("fmscale launch: ended with status") :]
    assert re.search(rf"rank 0 lost another rank: rank 1 on \S+ \(process {second.pid}\) was ended by signal 9", last)
    assert "failed first" not in last
