"""torchrun: an agent a node, which starts the ranks there. Each node is started by itself."""

from fmscale.launch.plan import Plan, Request, meeting_point, summarized
from fmscale.launch.programs import find_program

from fmscale.errors import ConfigError

SAVE_SECONDS = 300
"""Time that ranks get to save when the agent is told to end; its own default is 30 s, then it kills."""


def plan_torchrun(request: Request) -> Plan:
    """The agent of this node. Raises ConfigError for several nodes without --node-rank and --master-addr."""
    if request.hosts:
        raise ConfigError(
            "torchrun takes no hostfile: it is started on each node by itself",
            found=request.hostfile,
            remedy="Give --nodes, --node-rank and --master-addr on each node, or take --with deepspeed.",
        )
    meeting = ["--standalone"]
    summary = summarized("torchrun", request)
    if request.nodes > 1:
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
        meeting = ["--nnodes", str(request.nodes), "--node-rank", str(request.node_rank)]
        summary += f"; this is node {request.node_rank}"
    if request.nodes > 1 or request.master_port is not None:
        # The others only dial the port, which may well be taken on their own node.
        leads = not request.node_rank
        host, port = meeting_point(request) if leads else (request.master_addr, request.master_port or 29_500)
        meeting = [one for one in meeting if one != "--standalone"]
        meeting += ["--master-addr", str(host), "--master-port", str(port)]
    options = [*meeting, "--nproc-per-node", str(request.procs_per_node)]
    options += ["--shutdown-timeout", str(SAVE_SECONDS), *request.arguments, "--no-python"]
    return Plan(
        argv=(find_program("torchrun"), *options, *request.command),
        environment=request.environment,
        summary=summary,
        stop_by="ranks",
    )
