"""Lines of `fmscale launch --dry-run` for each launcher, and requests that it refuses.

Files stand in for launchers that a machine may lack: only `mpirun --version` runs here. The real launchers run in
`test_run.py`, and in the slow tier.
"""

import socket
import sys
from pathlib import Path

import pytest

from tests.helpers.s3_server import free_ports
from tests.launch.conftest import CONFIG, DryRun

BESIDE = Path(sys.executable).parent
RANK = f"{BESIDE}/fmscale train run.yaml train.steps=2"
DEAF = """sh -c 'trap "" USR1; exec "$@"' sh"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NCCL_DEBUG": "WARN",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
EXPORTS = [f"export {name}={value}" for name, value in ENVIRONMENT.items()]
SETTINGS = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
MPICH = "HYDRA build details:"


@pytest.fixture
def port() -> str:
    return str(free_ports(1)[0])


def test_one_node_needs_no_launcher_but_our_own(launch: DryRun, port: str) -> None:
    words = ("--procs-per-node", "2", "--argument=--max-restarts=3")
    assert launch(*words) == [
        "# local: 1 node, 2 ranks",
        *EXPORTS,
        f"{sys.executable} -m fmscale.launch.agent --ranks 2 --port 0 --max-restarts=3 -- {RANK}",
    ]
    assert f"--port {port} " in launch(*words, "--master-port", port)[-1]
    assert "--max-restarts=3" in "\n".join(launch("--procs-per-node", "2", "--argument=--tee=3", status=2))
    assert "this node alone" in "\n".join(launch("--with", "local", "--nodes", "2", status=2))


def test_torchrun_on_one_node_finds_its_own_port(launch: DryRun) -> None:
    assert launch("--with", "torchrun", "--procs-per-node", "2") == [
        "# torchrun: 1 node, 2 ranks",
        *EXPORTS,
        f"{BESIDE}/torchrun --rdzv-backend fmscale --nnodes 1 --rdzv-endpoint 127.0.0.1:0 "
        f"--nproc-per-node 2 --shutdown-timeout 300 --no-python {RANK}",
    ]


def test_torchrun_on_two_nodes_is_told_which_it_is(launch: DryRun) -> None:
    words = ("--nodes", "2", "--procs-per-node", "4", "--node-rank", "1", "--master-addr", "node-1")
    assert launch(*words, "--argument=--max-restarts=1") == [
        "# torchrun: 2 nodes, 4 ranks on each; this is node 1",
        *EXPORTS,
        f"{BESIDE}/torchrun --rdzv-backend fmscale --nnodes 2 --rdzv-conf rank=1 --rdzv-endpoint node-1:29500 "
        "--local-ranks-filter 0 --tee 3 --log-dir runs/run/logs/node-1 "
        f"--nproc-per-node 4 --shutdown-timeout 300 --max-restarts=1 --no-python {RANK}",
    ]


def test_an_install_that_torchrun_does_not_find_our_rendezvous_in_is_refused(
    launch: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: [])
    text = "\n".join(launch("--with", "torchrun", "--procs-per-node", "2", status=2))
    assert "this install is older than its code" in text
    assert "pip install -e ." in text


def test_deepspeed_on_one_node_is_kept_from_a_hostfile_of_the_system(launch: DryRun, port: str) -> None:
    assert launch("--with", "deepspeed", "--procs-per-node", "2", "--master-port", port) == [
        "# deepspeed: 1 node, 2 ranks",
        *EXPORTS,
        f"{BESIDE}/deepspeed --hostfile /dev/null --num_accelerators 2 --master_port {port} "
        f"--no_local_rank --no_python {RANK}",
    ]


def test_deepspeed_takes_the_devices_that_are_visible(
    launch: DryRun, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,2")
    words = ("--with", "deepspeed", "--master-port", port)
    assert "--include localhost:5,7 " in launch(*words, "--procs-per-node", "2")[-1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1f2e,GPU-2f3e")
    assert "GPU-1f2e" in "\n".join(launch(*words, "--procs-per-node", "2", status=2))


def test_deepspeed_by_a_hostfile_passes_the_environment_on(launch: DryRun) -> None:
    assert launch("data.sources=[{dataset: it's}]", "--with", "deepspeed", "--hostfile", "hosts") == [
        "# deepspeed: 2 nodes, 4 ranks on each",
        *EXPORTS,
        "export PDSH_SSH_ARGS_APPEND='-o ServerAliveInterval=10 -o ServerAliveCountMax=3'",
        f"{sys.executable} -m fmscale.launch.over_ssh --hostfile hosts --force_multi "
        "--num_nodes 2 --num_accelerators 4 "
        "--master_addr node-1 --master_port 29500 --no_local_rank --no_python "
        f"env {SETTINGS} {RANK} 'data.sources=[{{dataset: it'\"'\"'s}}]'",
    ]


def test_srun(launch: DryRun, programs: Path) -> None:
    words = ("--with", "srun", "--nodes", "2", "--procs-per-node", "4", "--argument=--partition=gpu")
    assert launch(*words) == [
        "# srun: 2 nodes, 4 ranks on each",
        *EXPORTS,
        f"{programs}/srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --distribution=block --cpu-bind=none "
        f"--kill-on-bad-exit=1 --label --partition=gpu {DEAF} {RANK}",
    ]


def test_sbatch_queues_the_script_that_comes_along(launch: DryRun, programs: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "launch/slurm/train.sbatch"
    lines = launch("--with", "sbatch", "--nodes", "2", "--procs-per-node", "4")
    assert lines == [
        "# sbatch: 2 nodes, 4 ranks on each, by train.sbatch",
        *EXPORTS,
        f"export PATH={BESIDE}:{programs}",
        f"{programs}/sbatch --nodes=2 --ntasks=8 --ntasks-per-node=4 {script} run.yaml train.steps=2",
    ]
    own = tmp_path / "own.sbatch"
    own.write_text("#!/bin/sh\n")
    own_lines = launch("--with", "sbatch", "--procs-per-node", "4", "--script", str(own))
    assert own_lines[-1].endswith(f" {own} run.yaml train.steps=2")


def test_mpirun_speaks_to_each_kind_in_its_own_words(launch: DryRun, programs: Path) -> None:
    words = ("--with", "mpirun", "--hostfile", "hosts", "--procs-per-node", "2")
    met = {"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}
    meeting = [f"export {name}={value}" for name, value in met.items()]
    assert launch(*words) == [
        "# mpirun of Open MPI: 2 nodes, 2 ranks on each",
        *EXPORTS,
        *meeting,
        f"{programs}/mpirun -n 4 --bind-to none --host node-1:2,node-2:2 "
        + "".join(f"-x {name}={value} " for name, value in (ENVIRONMENT | met).items())
        + f"{DEAF} {RANK}",
    ]
    (programs / "mpirun").write_text(f"#!/bin/sh\necho '{MPICH}'\n")
    assert launch(*words) == [
        "# mpirun of MPICH: 2 nodes, 2 ranks on each",
        *EXPORTS,
        *meeting,
        f"{programs}/mpirun -n 4 -ppn 2 -hosts node-1,node-2 "
        + "".join(f"-genv {name} {value} " for name, value in (ENVIRONMENT | met).items())
        + f"{DEAF} {RANK}",
    ]
    (programs / "mpirun").write_text("#!/bin/sh\necho 'SGI MPT 2.1'\n")
    assert "SGI MPT 2.1" in "\n".join(launch(*words, status=2))


def test_the_config_may_say_it_all_and_options_win(
    launch: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    more = "{launcher: srun, nodes: 2, procs_per_node: 4, environment: {OMP_NUM_THREADS: 2}, arguments: [-p, a]}"
    (tmp_path / "run.yaml").write_text(CONFIG + f"launch: {more}\n")
    lines = launch("--nodes", "1", "--argument=-q")
    assert lines[1:4] == [
        "export OMP_NUM_THREADS=2",
        "export NCCL_DEBUG=INFO",
        "export PYTHONUNBUFFERED=1",
    ]
    assert "--nodes=1 --ntasks=4 --ntasks-per-node=4 " in lines[-1]
    assert "--kill-on-bad-exit=1 --label -p a -q sh" in lines[-1]


def test_the_older_name_of_a_setting_counts(launch: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert "export PYTORCH_ALLOC_CONF=backend:native" in launch("--procs-per-node", "1")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    assert "export PYTORCH_ALLOC_CONF=backend:cudaMallocAsync" in launch("--procs-per-node", "1")
    (tmp_path / "run.yaml").write_text(CONFIG + "launch: {environment: {PYTORCH_ALLOC_CONF: a}}\n")
    assert "export PYTORCH_ALLOC_CONF=a" in launch("--procs-per-node", "1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--with deepspeed --nodes 2", "deepspeed on 2 nodes needs their names"),
        ("--with mpirun --nodes 2", "mpirun on 2 nodes needs their names"),
        ("--nodes 2", "started on each of them"),
        ("--nodes 2 --node-rank 0", "started on each of them"),
        ("--nodes 2 --node-rank 2 --master-addr node-1", "no node 2 among 2"),
        ("--nodes 2 --node-rank 0 --master-addr localhost", "a name that means themselves"),
        ("--with deepspeed --hostfile nowhere", "hostfile nowhere cannot be read"),
        ("--with torchrun --hostfile hosts", "torchrun takes no hostfile"),
        ("--with srun --hostfile hosts", "srun takes no hostfile"),
        ("--with sbatch --hostfile hosts", "sbatch takes no hostfile"),
        ("--with sbatch --script nowhere", "no such batch script"),
        ("--with=torchrun --argument=--standalone", "agents meet by the rendezvous of fmscale"),
        ("--with srun --master-addr node-1", "needs both --master-addr and --master-port"),
        ("--procs-per-node 3", "run.yaml:3: batch: the batch does not come out"),
        ("train.nope=1", "unknown key in train"),
        ("launch.master_port=70000", "must be a port"),
        ("launch.environment.A-B=1", "a name that no variable can have"),
    ],
)
def test_what_cannot_start_is_refused_before_it_starts(launch: DryRun, words: str, told: str) -> None:
    given = words.split()
    if "--procs-per-node" not in given and "--hostfile" not in given:
        given += ["--procs-per-node", "1"]
    assert told in "\n".join(launch(*given, status=2))


def test_slurm_must_be_told_how_many_ranks_a_node_runs(launch: DryRun) -> None:
    assert "must be told how many ranks" in "\n".join(launch("--with", "srun", status=2))


def test_a_port_in_use_is_refused_with_one_that_is_free(launch: DryRun) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        text = "\n".join(launch("--procs-per-node", "1", "--master-port", str(taken), status=2))
        assert f"127.0.0.1:{taken}" in text
        free = text.split("--master-port ")[1].rstrip(".")
        assert f"--port {free} " in launch("--procs-per-node", "1", "--master-port", free)[-1]


@pytest.mark.parametrize(
    ("launcher", "program", "package"),
    [
        ("srun", "srun", "slurm-client"),
        ("sbatch", "sbatch", "slurm-client"),
        ("deepspeed", "pdsh", "apt-get install pdsh"),
    ],
)
def test_a_missing_program_is_named_with_its_package(
    launch: DryRun, programs: Path, launcher: str, program: str, package: str
) -> None:
    (programs / program).unlink()
    words = ["--hostfile", "hosts"] if program == "pdsh" else ["--procs-per-node", "1"]
    text = "\n".join(launch("--with", launcher, *words, status=2))
    assert f"There is no {program} on the PATH" in text
    assert package in text


def documented() -> list[str]:
    """The lines of docs/launching.md that call the verb, without their comments."""
    text = (Path(__file__).parents[2] / "docs" / "launching.md").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith("fmscale launch ")]


@pytest.mark.parametrize("line", documented())
def test_what_the_documentation_says_would_start(launch: DryRun, tmp_path: Path, line: str, port: str) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG.replace("global_batch: 16", "global_batch: 32"))
    words = line.removeprefix("fmscale launch run.yaml").replace("--dry-run", "").split()
    if "srun" not in words and "--hostfile" not in words:
        words += ["--master-port", port]
    assert launch(*words)[0].startswith("# ")


@pytest.mark.parametrize(
    ("name", "ranks", "first", "last"),
    [
        ("node", "1 node, 8 ranks", " -m fmscale.launch.agent", "run.yaml train.steps=2"),
        ("slurm", "4 nodes, 8 ranks on each", "/sbatch --nodes=4", "train.sbatch run.yaml train.steps=2"),
        ("hosts", "2 nodes, 4 ranks on each", " -m fmscale.launch.over_ssh --hostfile hosts", "run.yaml train.steps=2"),
    ],
)
def test_the_clusters_that_are_shipped(
    launch: DryRun, tmp_path: Path, name: str, ranks: str, first: str, last: str
) -> None:
    shipped = Path(__file__).parents[2] / "configs" / "cluster" / f"{name}.yaml"
    (tmp_path / "own.yaml").write_text(CONFIG.replace("global_batch: 16", "global_batch: 32"))
    (tmp_path / "run.yaml").write_text(f"extends: [own.yaml, {shipped}]\n")
    lines = launch()
    assert lines[0].partition(": ")[2].startswith(ranks)
    assert first in lines[-1]
    assert lines[-1].endswith(last)
    assert ("export NCCL_SOCKET_IFNAME=ib0" in lines) == (name != "node")


def test_torchrun_takes_a_range_of_nodes(launch: DryRun) -> None:
    words = ("--nodes", "2:4", "--procs-per-node", "4", "--node-rank", "1", "--master-addr", "node-1")
    lines = launch("batch.uneven=fill", *words)
    assert lines[0] == "# torchrun: 2 to 4 nodes, 4 ranks on each; this is node 1"
    assert " --nnodes 2:4 --rdzv-conf rank=1 --max-restarts 10 --rdzv-endpoint node-1:29500 " in lines[-1]


def test_sbatch_takes_a_range_of_nodes_and_no_number_of_tasks(launch: DryRun) -> None:
    lines = launch("batch.uneven=fill", "--with", "sbatch", "--nodes", "2:4", "--procs-per-node", "4")
    assert "export PROCS=4" in lines
    assert "/sbatch --nodes=2-4 --mincpus=4 " in lines[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--nodes", "4:2"), "--nodes is no number of nodes"),
        (("--nodes", "0"), "--nodes is no number of nodes"),
        (("batch.uneven=fill", "--nodes", "2:4", "--with", "srun"), "srun cannot change the number of nodes"),
        (("--nodes", "1:3"), "here 16 = 1 x accumulation x 3"),
    ],
)
def test_a_range_of_nodes_that_cannot_be_is_refused(launch: DryRun, words: tuple[str, ...], told: str) -> None:
    assert told in " ".join(
        launch(*words, "--procs-per-node", "1", "--node-rank", "0", "--master-addr", "node-1", status=2)
    )
