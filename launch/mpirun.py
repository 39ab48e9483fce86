"""mpirun of Open MPI, MPICH and Intel MPI: ranks on this node, or on the hosts of a hostfile."""

from fmscale.launch.launch import Launch, LaunchRequest, meeting_point, one_node_or_hostfile
from fmscale.launch.programs import find_program, mpi_kind
from fmscale.launch.signals import DEAF_UNTIL_READY


def launch_by_mpirun(request: LaunchRequest) -> Launch:
    """The launch of all ranks, which meet over TCP: mpi4py and its MPI library play no part."""
    one_node_or_hostfile(request, "mpirun")
    program = find_program("mpirun")
    kind = mpi_kind(program)
    host, port = meeting_point(request)
    environment = {**request.environment, "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    each = str(request.procs_per_node)
    options = ["-n", str(request.ranks)]
    if kind == "Open MPI":
        # The default binds a rank and all its loader threads to one core.
        options += ["--bind-to", "none"]
        names = [host.name for host in request.hosts] or ["localhost"]
        options += ["--host", ",".join(f"{name}:{each}" for name in names)]
        for name, value in environment.items():
            options += ["-x", f"{name}={value}"]
    else:
        options += ["-ppn", each]
        if request.hosts:
            options += ["-hosts", ",".join(host.name for host in request.hosts)]
        for name, value in environment.items():
            options += ["-genv", name, value]
    return Launch(
        argv=(program, *options, *request.arguments, *DEAF_UNTIL_READY, *request.command),
        environment=environment,
        summary=request.summary(f"mpirun of {kind}"),
        stop_by="launcher",
    )
