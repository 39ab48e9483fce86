"""torchrun: an agent on each node starts the ranks there. Every node needs a command of its own."""

from importlib import metadata

from fmscale.launch.launch import DEFAULT_PORT, LOOPBACK, SAVE_SECONDS, Launch, LaunchRequest, meeting_point
from fmscale.launch.programs import find_program

from fmscale.errors import ConfigError

BACKEND = "fmscale"
"""Name of the rendezvous (`rendezvous.py`) in pyproject.toml. Torch's own rendezvous keeps pickles in a store that
listens on all interfaces."""

RESTARTS = 10
"""Restarts after failures of ranks, where nodes may change; a node that comes or is lost counts as none, but its loss
may show as a failure first."""


def launch_by_torchrun(request: LaunchRequest) -> Launch:
    """The launch of this node's agent. Raises ConfigError for several nodes without --node-rank and --master-addr."""
    if request.hosts:
        raise ConfigError(
            "torchrun takes no hostfile: it is started on each node by itself",
            found=request.hostfile,
            remedy="Give --nodes, --node-rank and --master-addr on each node, or take --with deepspeed.",
        )
    _check_registered()
    _refuse_meeting(request.arguments)
    summary = request.summary("torchrun")
    meeting = ["--rdzv-backend", BACKEND]
    if request.nodes == 1:
        # 0 means any free port; the agent tells the port to its ranks.
        port = meeting_point(request)[1] if request.master_port else 0
        meeting += ["--nnodes", "1", "--rdzv-endpoint", f"{LOOPBACK}:{port}"]
    else:
        if request.node_rank is None or request.master_addr is None:
            raise ConfigError(
                f"torchrun on {request.nodes} nodes is started on each of them, told its number",
                found={"--node-rank": request.node_rank, "--master-addr": request.master_addr},
                remedy="Give both: 0 on the first node, and that node's address on all.",
            )
        if request.node_rank >= request.nodes:
            raise ConfigError(
                f"There is no node {request.node_rank} among {request.nodes}",
                remedy=f"Give --node-rank 0 to {request.nodes - 1}.",
            )
        summary += f"; this is node {request.node_rank}"
        # Other nodes only connect to the port of the first node; their own port of that number may be in use.
        leads = not request.node_rank
        host, port = meeting_point(request) if leads else (request.master_addr, request.master_port or DEFAULT_PORT)
        nodes = f"{request.least}:{request.nodes}" if request.least else str(request.nodes)
        meeting += ["--nnodes", nodes, "--rdzv-conf", f"rank={request.node_rank}"]
        meeting += ["--max-restarts", str(RESTARTS)] * bool(request.least)
        meeting += ["--rdzv-endpoint", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
        # 512 ranks that print to one terminal are unreadable; the files have the output of all.
        meeting += ["--local-ranks-filter", "0", "--tee", "3", "--log-dir", f"{request.logs}/node-{request.node_rank}"]
    options = [*meeting, "--nproc-per-node", str(request.procs_per_node)]
    options += ["--shutdown-timeout", str(SAVE_SECONDS), *request.arguments, "--no-python"]
    return Launch(
        argv=(find_program("torchrun"), *options, *request.command),
        environment=request.environment,
        summary=summary,
        stop_by="ranks",
    )


def _refuse_meeting(arguments: tuple[str, ...]) -> None:
    """Raise ConfigError for an option by which agents would meet in torch's own store, which holds pickles."""
    for argument in arguments:
        if argument.startswith(("--standalone", "--rdzv", "--master-addr", "--master_addr")):
            raise ConfigError(
                "torchrun's agents meet by the rendezvous of fmscale",
                found=argument,
                remedy="Leave this argument out; --master-addr and --master-port of `fmscale launch` say where.",
            )


def _check_registered() -> None:
    # All copies of the metadata are read: a checkout in the working folder may have an older copy.
    installs = metadata.distributions(name="fmscale")
    if not any(install.entry_points.select(group="torchrun.handlers", name=BACKEND) for install in installs):
        raise ConfigError(
            "torchrun does not know the rendezvous of fmscale: this install is older than its code",
            remedy="Install it again: pip install -e . in its folder.",
        )
