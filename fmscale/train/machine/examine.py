"""The examination behind `fmscale doctor`: of this machine alone, or of all ranks' machines and their links."""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from torch import distributed

from fmscale.runtime import variables
from fmscale.runtime.device import pick_device
from fmscale.runtime.group import connect, init_distributed
from fmscale.runtime.tcp_store import LOOPBACK
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.train.machine.finding import Finding
from fmscale.train.machine.host import addresses_of, host_findings
from fmscale.train.machine.links import judge_links, measure_ring, unreached
from fmscale.train.machine.software import software_findings

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

CLOCK_SECONDS = 2.0
"""Clocks read within a second of each other may differ so much."""


def examine_machine() -> list[Finding]:
    """Findings about this machine; some seconds, and the kernels' compilation where it has a GPU that is new to it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmscale" / "kernels.json"
    return [*software_findings(cache), *host_findings()]


def examine_nodes(world: World, *, deadline: float = 120.0) -> list[Finding]:
    """Findings about the machines of all ranks and the links between them; the same on every rank.

    Rank 0's machine is told whole, of the other machines only what is not right or differs. Raises RankError, with the
    rank, if the ranks do not meet within `deadline` seconds.
    """
    store = connect(world, deadline=deadline)
    waits = HostWaits(store, world)
    try:
        findings = _meet_and_measure(world, store, waits, deadline)
        waits.part()
        return findings
    except BaseException as error:
        waits.fail(error, "doctor")
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        variables.take_back()


def _meet_and_measure(world: World, store: "Store", waits: HostWaits, deadline: float) -> list[Finding]:
    waits.barrier("meeting", deadline=deadline)
    clock = waits.barrier("clock", value=repr(time.time()), deadline=deadline)
    own = examine_machine() if world.local_rank == 0 else []
    mine = {"host": socket.gethostname(), "findings": [asdict(finding) for finding in own]}
    machines = [json.loads(text) for text in waits.barrier("machine", value=json.dumps(mine))]
    names = [machine["host"] for machine in machines]
    findings = _together(machines) + judge_clocks([float(text) for text in clock], names)
    if world.world_size == 1:
        return findings
    gaps = unreached(world, waits, own_address(world))
    if gaps:
        return findings + [_gap(names, *gap) for gap in gaps]
    device = pick_device(world)
    init_distributed(world, store, device=device, deadline=deadline)
    return findings + judge_links(measure_ring(world, waits, device), names)


def own_address(world: World) -> str:
    """Address at which gloo would listen: loopback on one node, else that of GLOO_SOCKET_IFNAME or of the host name."""
    if world.on_one_node:
        return LOOPBACK
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
    given = [one.address for one in psutil.net_if_addrs().get(interface, ()) if one.family == socket.AF_INET]
    return next(iter(given or addresses_of(socket.gethostname())), LOOPBACK)


def _together(machines: Sequence[dict[str, object]]) -> list[Finding]:
    """Findings of the first machine, and those of the others that are not right or of other software."""
    told = [[Finding(**one) for one in machine["findings"]] for machine in machines]  # type: ignore[attr-defined]
    first = {finding.name: finding for finding in told[0]}
    findings = list(told[0])
    for machine, others in zip(machines[1:], told[1:], strict=True):
        for finding in others:
            place = f"{finding.name} on {machine['host']}"
            if finding.status in ("warn", "fail"):
                findings.append(Finding(name=place, status=finding.status, found=finding.found, remedy=finding.remedy))
            elif finding.name == "torch" and finding.found != first["torch"].found:
                remedy = "Give all nodes the same versions of fmscale, torch and the driver."
                findings.append(Finding(name=place, status="fail", found=finding.found, remedy=remedy))
    return findings


def judge_clocks(times: Sequence[float], names: Sequence[str]) -> list[Finding]:
    """A finding if clocks that were read at one time differ; `names`: host of each."""
    latest, earliest = max(times), min(times)
    if latest - earliest <= CLOCK_SECONDS:
        return []
    found = f"{names[times.index(latest)]} is {latest - earliest:.1f} s ahead of {names[times.index(earliest)]}"
    remedy = "Start a time service (chronyd) on all nodes: leases and logs compare their clocks."
    return [Finding(name="clocks", status="warn", found=found, remedy=remedy)]


def _gap(names: Sequence[str], source: int, target: int, reason: str) -> Finding:
    return Finding(
        name="unreachable",
        status="fail",
        found=f"rank {source} on {names[source]} does not reach rank {target} on {names[target]} at {reason}",
        remedy="Open the ports of ip_local_port_range between the nodes, and correct the name in /etc/hosts.",
    )
