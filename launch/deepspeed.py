"""deepspeed's launcher: ranks on this node, or over ssh (by pdsh) on the hosts of a hostfile."""

import os
import re
import sys

from fmscale.launch.launch import Launch, LaunchRequest, meeting_point, one_node_or_hostfile
from fmscale.launch.programs import find_program

from fmscale.errors import ConfigError

SSH = "PDSH_SSH_ARGS_APPEND"


def launch_by_deepspeed(request: LaunchRequest) -> Launch:
    """The launch. Raises ConfigError for several nodes without a hostfile: deepspeed would start all ranks here."""
    one_node_or_hostfile(request, "deepspeed")
    program = find_program("deepspeed")
    host, port = meeting_point(request)
    command, environment = request.command, dict(request.environment)
    words: list[str] = [program]
    ask: tuple[str, ...] = ()
    if request.hosts:
        for needed in ("pdsh", "ssh"):
            find_program(needed)
        # --force_multi: a hostfile with a single host means that host, not this node
        options = ["--hostfile", str(request.hostfile), "--force_multi", "--num_nodes", str(request.nodes)]
        options += ["--num_accelerators", str(request.procs_per_node), "--master_addr", host]
        # ssh by itself waits for a host that is cut off until TCP gives up, and the launch with it.
        environment[SSH] = f"{os.environ.get(SSH, '')} -o ServerAliveInterval=10 -o ServerAliveCountMax=3".strip()
        # deepspeed passes on only variables of its own choice, and quotes only arguments with blanks.
        settings = [f"{name}={value}" for name, value in request.environment.items()]
        command = tuple(for_remote_shell(word) for word in ("env", *settings, *command))
        words = [sys.executable, "-m", "fmscale.launch.over_ssh"]
        names = ",".join(host.name for host in request.hosts)
        # deepspeed itself gives ranks 30 s for their save, and then status 1.
        ask = ("pdsh", "-S", "-R", "ssh", "-w", names, f"pkill -P $(pgrep -d, -f '{of_run(host, port)}')")
    else:
        # Without the option deepspeed takes an existing /job/hostfile by itself.
        options = ["--hostfile", os.devnull, *_devices(request)]
    options += ["--master_port", str(port), *request.arguments, "--no_local_rank", "--no_python"]
    return Launch(
        argv=(*words, *options, *command),
        environment=environment,
        summary=request.summary("deepspeed"),
        stop_by="command" if ask else "ranks",
        ask=ask,
    )


def of_run(host: str, port: int) -> str:
    """Regular expression, for pdsh, of the command of deepspeed's process on a host of the run that meets there; it
    matches no shell, ssh or pdsh that has this command as an argument.
    """
    own = f"--node_rank=%n --master_addr={re.escape(host)} --master_port={port} "
    return f"^[^ ]+ -u -m deepspeed[.]launcher[.]launch .*{own}"


def for_remote_shell(argument: str) -> str:
    """Form of an argument that arrives unchanged through deepspeed, pdsh (which expands %) and a shell."""
    argument = argument.replace("%", "%%")
    if not argument:
        return "''"
    if " " in argument:
        # deepspeed puts such an argument into double quotes, and escapes the double quotes inside
        return re.sub(r"([\\$`])", r"\\\1", argument)
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", argument)


def _devices(request: LaunchRequest) -> list[str]:
    """Options for the devices: with only a number, deepspeed ignores CUDA_VISIBLE_DEVICES."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [name.strip() for name in names if name.strip()]
    if not visible:
        return ["--num_accelerators", str(request.procs_per_node)]
    if len(visible) < request.procs_per_node or not all(name.isdecimal() for name in visible):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES does not have {request.procs_per_node} device numbers, as deepspeed needs",
            found=os.environ["CUDA_VISIBLE_DEVICES"],
            remedy="Unset it, start fewer ranks, or take --with torchrun.",
        )
    return ["--include", "localhost:" + ",".join(visible[: request.procs_per_node])]
