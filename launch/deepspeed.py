"""deepspeed's launcher: on this node, or over ssh on those of a hostfile (by pdsh)."""

import os
import re
from collections.abc import Mapping

from fmscale.launch.plan import Launch, LaunchRequest, meeting_point, one_node_or_hostfile, summarized
from fmscale.launch.programs import find_program

from fmscale.errors import ConfigError

NO_HOSTFILE = os.devnull
"""Given where there is none, as deepspeed else takes /job/hostfile unasked, if that is there."""


def plan_deepspeed(request: LaunchRequest, environ: Mapping[str, str] = os.environ) -> Launch:
    """All ranks. Raises ConfigError for several nodes without a hostfile, which deepspeed would start here."""
    one_node_or_hostfile(request, "deepspeed")
    program = find_program("deepspeed")
    host, port = meeting_point(request)
    command = request.command
    if request.hosts:
        for needed in ("pdsh", "ssh"):
            find_program(needed)
        # --force_multi: a hostfile with one host means that host, not this one
        options = ["--hostfile", str(request.hostfile), "--force_multi", "--num_nodes", str(request.nodes)]
        options += ["--num_accelerators", str(request.procs_per_node), "--master_addr", host]
        # It passes no variables on but some of its own choice, and quotes what has blanks, and nothing else.
        settings = [f"{name}={value}" for name, value in request.environment.items()]
        command = tuple(for_remote_shell(one) for one in ("env", *settings, *command))
    else:
        options = ["--hostfile", NO_HOSTFILE, *_devices(request, environ)]
    options += ["--master_port", str(port), *request.arguments, "--no_local_rank", "--no_python"]
    return Launch(
        argv=(program, *options, *command),
        environment=request.environment,
        summary=summarized("deepspeed", request),
        stop_by="terminate" if request.hosts else "ranks",
    )


def for_remote_shell(argument: str) -> str:
    """`argument` as it must be given to deepspeed to arrive as it is, through pdsh (which expands %) and a shell."""
    argument = argument.replace("%", "%%")
    if not argument:
        return "''"
    if " " in argument:
        # deepspeed puts these into double quotes, and escapes the double quotes inside
        return re.sub(r"([\\$`])", r"\\\1", argument)
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", argument)


def _devices(request: LaunchRequest, environ: Mapping[str, str]) -> list[str]:
    """Which devices; with a number alone, deepspeed takes the first ones and ignores CUDA_VISIBLE_DEVICES."""
    visible = [one for one in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    if not visible:
        return ["--num_accelerators", str(request.procs_per_node)]
    if len(visible) < request.procs_per_node or not all(one.strip().isdecimal() for one in visible):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES does not have {request.procs_per_node} device numbers, as deepspeed needs",
            found=environ["CUDA_VISIBLE_DEVICES"],
            remedy="Unset it, start fewer ranks, or take --with torchrun.",
        )
    return ["--include", "localhost:" + ",".join(one.strip() for one in visible[: request.procs_per_node])]
