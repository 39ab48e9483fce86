"""Real launchers start ranks that meet; a stop reaches them; the output ends with the first failure."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fmscale.launch import agent
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.helpers.listeners import Place, listeners, off_loopback, other_interface
from tests.helpers.s3_server import free_ports
from tests.helpers.slurm import Slurm
from tests.helpers.ssh_hosts import SshHosts

STARTER = Path(__file__).with_name("starter.py")
SECONDS = 60.0


def command(launcher: str, folder: Path, *tasks: str, procs: int = 2) -> list[str]:
    port = "0" if launcher in ("local", "torchrun", "srun") else str(free_ports(1)[0])
    return [sys.executable, str(STARTER), launcher, str(procs), str(folder), port, *tasks]


def start(*words: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, **variables}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        out = process.communicate(timeout=SECONDS)[0]
    finally:
        process.kill()
    return process.returncode, out


def seen(folder: Path, rank: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return value


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"no {paths}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def mpich_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MPICH of the wheel, before any mpirun of the machine."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def pickled(value: bytes) -> bool:
    """True for a pickle, plain or in base64 as in torch's own rendezvous."""
    forms = [value]
    with contextlib.suppress(ValueError):
        forms.append(base64.b64decode(value, validate=True))
    return any(form[:1] == b"\x80" and form[-1:] == b"." for form in forms)


def assert_no_pickle(found: dict[Place, set[str]], made: Path) -> None:
    """The store of torchrun's agent has no pickle. A pickle that makes a file is put where torch's rendezvous reads."""
    agent = next(place for place, who in found.items() if any("bin/torchrun" in one for one in who))
    store = TCPStore(*agent, is_master=False)
    keys = store.list_keys()
    assert [key for key in keys if pickled(store.get(key))] == []
    assert any("fmscale/0" in key for key in keys)
    # protocol 0: a call of os.system
    evil = base64.b64encode(f"cos\nsystem\n(S'touch {made}'\ntR.".encode())
    for key in {"/torch.rendezvous.none", *(key for key in keys if "rendezvous" in key)}:
        store.set(key, evil.decode())


@pytest.mark.parametrize(
    "launcher",
    [
        "local",
        pytest.param("torchrun", marks=pytest.mark.slow),
        pytest.param("mpirun", marks=pytest.mark.mpi),
        pytest.param("deepspeed", marks=pytest.mark.slow),
    ],
)
def test_ranks_meet_with_what_they_were_given_and_stop_when_told(launcher: str, tmp_path: Path) -> None:
    named = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), other_interface())
    named |= {"PET_STANDALONE": "1", "PET_NNODES": "2"}  # torchrun's options, as in the shells of some clusters
    process = start(*command(launcher, tmp_path, "meet", "wait", "two words", "$HOME;'\""), **named)
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    found = listeners(process.pid)
    assert len(found) >= 3  # a store and two ranks of gloo
    if launcher == "torchrun":
        assert_no_pickle(found, tmp_path / "ran")
    assert off_loopback(found) == {}
    process.send_signal(signal.SIGUSR1)
    status, out = finish(process)
    assert status == 0, out
    assert not (tmp_path / "ran").exists()
    assert "SIGUSR1: the ranks save and end" in out
    family = "mpirun" if launcher == "mpirun" else "torchrun"
    for rank in range(2):
        assert seen(tmp_path, rank) == {
            "world": [family, rank, 2, rank, 0],
            "environment": {"OMP_NUM_THREADS": "1", "NCCL_DEBUG": "WARN", "EXTRA": "a b"},
            "folder": os.getcwd(),
            "arguments": ["meet", "wait", "two words", "$HOME;'\""],
            "total": 3.0,
            "stop": "SIGUSR1",
        }


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        ("local", "SIGTERM"),
        pytest.param("torchrun", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("mpirun", "SIGINT", marks=pytest.mark.mpi),
        pytest.param("mpirun", "SIGHUP", marks=pytest.mark.mpi),
    ],
)
def test_the_first_signal_of_any_kind_asks_the_ranks_to_save_and_end(launcher: str, name: str, tmp_path: Path) -> None:
    """The tests of nohup and of deaf ranks send SIGTERM to an mpirun."""
    process = start(*command(launcher, tmp_path, "wait"))
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    process.send_signal(getattr(signal, name))
    status, out = finish(process)
    assert (status, [seen(tmp_path, rank)["stop"] for rank in range(2)]) == (0, ["SIGUSR1"] * 2), out
    assert f"{name}: the ranks save and end" in out


@pytest.mark.slow
@pytest.mark.mpi
def test_open_mpi_passes_the_stop_on(tmp_path: Path) -> None:
    program = shutil.which("mpirun.openmpi")
    if program is None:
        pytest.skip("needs Open MPI: apt-get install openmpi-bin")
    (tmp_path / "mpirun").symlink_to(program)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = start(*command("mpirun", tmp_path, "meet", "wait"), PATH=path, **root)
    assert_stops(process, tmp_path, "SIGUSR1")


@pytest.mark.slow
def test_srun_passes_the_stop_on(tmp_path: Path, cluster: Slurm) -> None:
    process = start(*command("srun", tmp_path, "meet", "wait"), **cluster.environment)
    assert_stops(process, tmp_path, "SIGUSR1")


@pytest.mark.slow
def test_the_ends_of_two_launches_on_the_same_hosts_behind_ssh(tmp_path: Path, hosts: SshHosts) -> None:
    """A stop reaches the ranks of its own launch, with 0; a launch whose pdsh is killed ends them, and not with 0."""
    odd = ["two words", "$HOME;'\"", "50%n of `id` $HOME", "{x: [1]}", "", "\\n", "last"]
    folders, launches = [tmp_path / "stopped", tmp_path / "killed"], []
    for folder in folders:
        folder.mkdir()
        (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        words = command("deepspeed", folder, f"hostfile={folder / 'hosts'}", "meet", "wait", *odd, procs=1)
        launches.append(start(*words, PATH=hosts.path(os.environ["PATH"])))
    wait_for(*(folder / f"ready-{rank}" for folder in folders for rank in range(2)))
    launches[0].send_signal(signal.SIGUSR1)
    status, out = finish(launches[0])
    assert (status, out.count("exits successfully")) == (0, 2), out
    for rank in range(2):
        found = seen(folders[0], rank)
        assert found["stop"] == "SIGTERM"
        assert found["world"] == ["torchrun", rank, 2, 0, rank]
        assert found["arguments"][3:] == odd
        assert found["environment"]["EXTRA"] == "a b"
    assert not list(folders[1].glob("rank-*.json"))
    below = psutil.Process(launches[1].pid).children(recursive=True)
    # Debian's pdsh is a script that starts pdsh.bin.
    for pdsh in [one for one in below if one.name().startswith("pdsh")]:
        pdsh.kill()
    status, out = finish(launches[1])
    assert status == 128 + signal.SIGKILL
    assert "pdsh was ended by signal 9: the ranks on all hosts end" in out
    wait_for(folders[1] / "rank-0.json", folders[1] / "rank-1.json")


def assert_stops(process: "subprocess.Popen[str]", folder: Path, reason: str) -> None:
    """With both ranks ready, SIGTERM to the launch stops them for that reason, and all exit with 0."""
    wait_for(folder / "ready-0", folder / "ready-1")
    process.send_signal(signal.SIGTERM)
    status, out = finish(process)
    assert (status, [seen(folder, rank)["stop"] for rank in range(2)]) == (0, [reason] * 2), out


def test_a_killed_rank_is_named_and_the_ranks_start_again_as_often_as_told(tmp_path: Path) -> None:
    process = start(*command("local", tmp_path, "restarts=1", "wait"))
    for attempt in range(2):
        wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
        for rank in range(2):
            (tmp_path / f"ready-{rank}").unlink()
        below = psutil.Process(process.pid).children(recursive=True)
        [second] = [one for one in below if one.environ().get("RANK") == "1"]
        assert second.environ()["TORCHELASTIC_RESTART_COUNT"] == str(attempt)
        second.kill()
    status, out = finish(process)
    assert status == 128 + signal.SIGKILL
    assert out.count("was ended by signal 9 (SIGKILL)") == 2
    assert out.count("the ranks start again, 1 of 1") == 1
    assert f"rank 1 (process {second.pid}) was ended" in out
    assert seen(tmp_path, 0)["stop"] == "SIGTERM"


def test_a_port_that_is_taken_behind_the_check_of_the_launch_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert agent.run(["true"], ranks=2, port=port, restarts=0) == 2
    assert f"The port where the ranks meet, 127.0.0.1:{port}: Address already in use" in capfd.readouterr().err


@pytest.mark.slow
def test_a_stop_that_comes_before_the_ranks_listen_is_repeated(tmp_path: Path) -> None:
    process = start(*command("local", tmp_path, "wait"))
    launcher = psutil.Process(process.pid)
    deadline = time.monotonic() + SECONDS
    while not any("rank.py" in " ".join(one.cmdline()[:2]) for one in launcher.children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    status, out = finish(process)
    assert (status, seen(tmp_path, 0)["stop"]) == (0, "SIGUSR1"), out


@pytest.mark.mpi
def test_nohup_keeps_its_word(tmp_path: Path) -> None:
    process = start("nohup", *command("mpirun", tmp_path, "wait"))
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    status, out = finish(process)
    assert (status, seen(tmp_path, 0)["stop"]) == (0, "SIGUSR1"), out
    assert "SIGHUP" not in out
    assert "SIGTERM: the ranks save and end" in out


@pytest.mark.mpi
def test_ranks_that_do_not_want_to_stop_are_killed_in_the_end(tmp_path: Path) -> None:
    process = start(*command("mpirun", tmp_path, "deaf"))
    assert process.stdout is not None
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    ranks = psutil.Process(process.pid).children(recursive=True)
    for told in ("SIGTERM: the ranks", "SIGTERM again: the launcher ends", "SIGTERM again: all are killed"):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith(told)
    status, out = finish(process)
    assert status == 128 + signal.SIGKILL
    assert "error.json" not in out
    assert psutil.wait_procs(ranks, timeout=SECONDS)[1] == []


@pytest.mark.parametrize(
    "launcher",
    ["local", pytest.param("torchrun", marks=pytest.mark.slow), pytest.param("mpirun", marks=pytest.mark.mpi)],
)
def test_the_first_failure_is_shown_last_and_the_status_is_not_0(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text("of an attempt before")
    status, out = finish(start(*command(launcher, tmp_path, "fail=1")))
    assert status == 1, out
    shown = out[out.index("fmscale launch: ended with status 1") :].splitlines()
    assert shown[1].startswith("rank 1 on ")
    assert shown[1].endswith(" failed first, in stand-in:")
    assert shown[2] == "ValueError: told to fail"
    assert any("rank.py" in line for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "program"), [("local", "launch.agent"), ("torchrun", "torchrun")])
def test_a_launcher_that_dies_takes_its_ranks_along_and_says_that_none_reported(
    launcher: str, program: str, tmp_path: Path
) -> None:
    process = start(*command(launcher, tmp_path, "wait"))
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    agent = next(one for one in psutil.Process(process.pid).children() if program in " ".join(one.cmdline()[:3]))
    ranks = agent.children()
    for one in (agent, *ranks):
        one.kill()
    status, out = finish(process)
    assert status == 128 + signal.SIGKILL
    assert f"No rank wrote {tmp_path}/error.json" in out


BEHIND = """
import os, signal, sys
from pathlib import Path
from fmscale.launch.launch import Launch
from fmscale.launch.run import run_launch

def launched(*words, more):
    launch = Launch(argv=words, environment={}, summary="", stop_by="launcher")
    return run_launch(launch, "rank", Path(sys.argv[1]), print, more=more)

first = launched("true", more=True)
assert not first.stopped and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, first
last = launched(*sys.argv[3:], more=sys.argv[2] == "stopped")
assert last.stopped == (sys.argv[2] == "stopped"), last
os.kill(os.getpid(), signal.SIGTERM)
sys.exit(last.status)
"""


@pytest.mark.parametrize("words", [("last", "true"), ("stopped", "sh", "-c", "kill -TERM $PPID")], ids=lambda w: w[0])
def test_a_stop_behind_the_end_of_a_launch_is_no_failure(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Behind the last launch, or behind a stopped one, whose sweep ends there; between two launches it still ends."""
    status, out = finish(start(sys.executable, "-c", BEHIND, str(tmp_path), *words))
    assert status == 0, out


@pytest.mark.parametrize("launcher", ["local", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_ranks_do_not_outlive_a_killed_launch(launcher: str, tmp_path: Path) -> None:
    process = start(*command(launcher, tmp_path, "wait"))
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    ranks = [one for one in psutil.Process(process.pid).children(recursive=True) if "wait" in one.cmdline()]
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    assert psutil.wait_procs(ranks, timeout=SECONDS / 2)[1] == []
    assert seen(tmp_path, 0)["stop"] == "SIGTERM"


def test_the_death_of_who_started_a_launch_counts_once() -> None:
    """A killed process with several threads can send its child's parent-death signal more than once."""
    code = """
import ctypes, os, signal
from fmscale.launch.run import PR_SET_PDEATHSIG, _heard_of_parent
PR_GET_PDEATHSIG = 2
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
_heard_of_parent(signal.SIGTERM)
wanted = ctypes.c_int(-1)
ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(wanted))
print(wanted.value, len(signal.sigpending()))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["0", "0"]
