"""Ranks of this node, started by an agent of our own (`agent.py`): it imports no torch, as torchrun's agent does for
two seconds.
"""

import re
import sys

from fmscale.launch.launch import Launch, LaunchRequest, meeting_point

from fmscale.errors import ConfigError

RESTARTS = "--max-restarts="


def launch_on_this_node(request: LaunchRequest) -> Launch:
    """The launch of all ranks on this node. Raises ConfigError for several nodes or an unknown option."""
    if request.nodes > 1 or request.hosts:
        raise ConfigError(
            "The launcher `local` starts ranks on this node alone",
            found=request.hostfile or f"{request.nodes} nodes",
            remedy="Take --with torchrun, deepspeed, srun or mpirun.",
        )
    for argument in request.arguments:
        if not re.fullmatch(RESTARTS + r"\d+", argument):
            raise ConfigError(
                "The launcher `local` has one option",
                found=argument,
                remedy=f"Give --argument={RESTARTS}3 for restarts after a failure, or name the launcher: "
                "--with torchrun.",
            )
    # 0 takes a free port; the agent tells the port to its ranks.
    port = meeting_point(request)[1] if request.master_port else 0
    options = ["--ranks", str(request.procs_per_node), "--port", str(port), *request.arguments]
    return Launch(
        argv=(sys.executable, "-m", "fmscale.launch.agent", *options, "--", *request.command),
        environment=request.environment,
        summary=request.summary("local"),
        stop_by="ranks",
    )
