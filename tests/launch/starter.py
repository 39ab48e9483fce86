"""Runs `tests/launch/rank.py` by a launcher, as `fmscale launch` runs `fmscale train`: plan, run, show, end.

starter.py LAUNCHER PROCS FOLDER [TASK ...]
"""

import sys
from pathlib import Path

from fmscale.launch.environment import rank_environment
from fmscale.launch.launchers import make_plan
from fmscale.launch.plan import Request
from fmscale.launch.run import run_plan

from fmscale.cli.launch import show_failure

RANK = str(Path(__file__).with_name("rank.py"))


def main(launcher: str, procs: int, folder: Path, tasks: list[str], port: int) -> int:
    """Exit status of the launcher."""
    request = Request(
        command=(sys.executable, RANK, str(folder), *tasks),
        procs_per_node=procs,
        master_port=port or None,
        environment=rank_environment({"EXTRA": "a b"}),
    )
    ended = run_plan(make_plan(launcher, request), RANK, folder, tell=lambda words: print(words, flush=True))
    if ended.status:
        show_failure(folder, ended)
    return ended.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[5:], int(sys.argv[4])))
