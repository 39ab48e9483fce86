"""torchrun: an agent a node, which starts the ranks there. Each node is started by itself."""

from importlib import metadata

from fmscale.launch.plan import LOOPBACK, Launch, LaunchRequest, meeting_point, summarized
from fmscale.launch.ports import DEFAULT_PORT
from fmscale.launch.programs import find_program

from fmscale.errors import ConfigError

BACKEND = "fmscale"
"""Our rendezvous (`rendezvous.py`) under the name that pyproject.toml registers. torch's own that finds a port by
itself keeps pickles in a store that listens on all interfaces."""

SAVE_SECONDS = 300
"""Time that ranks get to save when the agent is told to end; its own default is 30 s, then it kills."""


def plan_torchrun(request: LaunchRequest) -> Launch:
    """The agent of this node. Raises ConfigError for several nodes without --node-rank and --master-addr."""
    if request.hosts:
        raise ConfigError(
            "torchrun takes no hostfile: it is started on each node by itself",
            found=request.hostfile,
            remedy="Give --nodes, --node-rank and --master-addr on each node, or take --with deepspeed.",
        )
    _check_registered()
    _refuse_meeting(request.arguments)
    summary = summarized("torchrun", request)
    meeting = ["--rdzv-backend", BACKEND]
    if request.nodes == 1:
        # 0: any free port, which the ranks are told
        port = meeting_point(request)[1] if request.master_port else 0
        meeting += ["--nnodes", "1", "--rdzv-endpoint", f"{LOOPBACK}:{port}"]
    else:
        if request.node_rank is None or request.master_addr is None:
            raise ConfigError(
                f"torchrun on {request.nodes} nodes is started on each of them, told which one it is",
                found={"--node-rank": request.node_rank, "--master-addr": request.master_addr},
                remedy="Give both: 0 on the first node, and that node's address on all.",
            )
        if request.node_rank >= request.nodes:
            raise ConfigError(
                f"There is no node {request.node_rank} among {request.nodes}",
                remedy=f"Give --node-rank 0 to {request.nodes - 1}.",
            )
        summary += f"; this is node {request.node_rank}"
        # The others only dial the port, which may well be taken on their own node.
        leads = not request.node_rank
        host, port = meeting_point(request) if leads else (request.master_addr, request.master_port or DEFAULT_PORT)
        meeting += ["--nnodes", str(request.nodes), "--rdzv-conf", f"rank={request.node_rank}"]
        meeting += ["--rdzv-endpoint", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    options = [*meeting, "--nproc-per-node", str(request.procs_per_node)]
    options += ["--shutdown-timeout", str(SAVE_SECONDS), *request.arguments, "--no-python"]
    return Launch(
        argv=(find_program("torchrun"), *options, *request.command),
        environment=request.environment,
        summary=summary,
        stop_by="ranks",
    )


def _refuse_meeting(arguments: tuple[str, ...]) -> None:
    """Raise ConfigError for an option that has the agents meet elsewhere: in torch's own store, with its pickles."""
    for one in arguments:
        if one.startswith(("--standalone", "--rdzv", "--master-addr", "--master_addr")):
            raise ConfigError(
                "torchrun's agents meet by the rendezvous of fmscale",
                found=one,
                remedy="Leave this argument out; --master-addr and --master-port of `fmscale launch` say where.",
            )


def _check_registered() -> None:
    # Every copy of the metadata that is found: a checkout that is the working folder may have an older one.
    installs = metadata.distributions(name="fmscale")
    if not any(one.entry_points.select(group="torchrun.handlers", name=BACKEND) for one in installs):
        raise ConfigError(
            "torchrun does not know the rendezvous of fmscale: this install is older than its code",
            remedy="Install it again: pip install -e . in its folder.",
        )
