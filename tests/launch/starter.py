"""Runs `tests/launch/rank.py` by a launcher, as `fmscale launch` runs `fmscale train`.

starter.py LAUNCHER PROCS FOLDER [TASK ...]
"""

import sys
from dataclasses import replace
from pathlib import Path

from fmscale.launch.environment import rank_environment
from fmscale.launch.hostfile import choose_hosts, read_hostfile
from fmscale.launch.launch import LaunchRequest
from fmscale.launch.launchers import LAUNCHERS
from fmscale.launch.run import run_launch

from fmscale.cli.launch import show_failure

RANK = str(Path(__file__).with_name("rank.py"))


def main(launcher: str, procs: int, folder: Path, port: int, tasks: list[str]) -> int:
    """Exit status of the launcher."""
    request = LaunchRequest(
        command=(sys.executable, RANK, str(folder), *tasks),
        procs_per_node=procs,
        master_port=port or None,
        environment=rank_environment({"EXTRA": "a b"}),
    )
    if tasks and tasks[0].startswith("restarts="):
        request = replace(request, arguments=(f"--max-{tasks[0]}",))
    if tasks and tasks[0].startswith("hostfile="):
        path = Path(tasks[0].partition("=")[2])
        hosts, procs = choose_hosts(read_hostfile(path), None, procs, path)
        request = replace(request, hosts=hosts, hostfile=path, nodes=len(hosts), procs_per_node=procs)
    ended = run_launch(LAUNCHERS[launcher](request), RANK, folder, tell=lambda words: print(words, flush=True))
    if ended.status:
        show_failure(folder, ended)
    return ended.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
