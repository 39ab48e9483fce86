"""R4.hosts: faults of a host in the middle of a training on 2 and 4 hosts, by torchrun and by deepspeed over ssh.

Each host has its own network, processes, name and mounts (`tests/helpers/net_hosts.py`), and a rank. A fault must end
every other rank by itself, and their words must name its cause. A slow host ends nothing, and is named by the watchdog.

    python -m benchmarks.clusters_hosts [--quick]
"""

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Claim
from fmscale.errors import FmscaleError
from fmscale.runtime.watched import lagging, read_watched
from tests.helpers.host_runs import HostRun, launch
from tests.helpers.net_hosts import NetHosts, refused
from tests.launch.training import prepare

COMM_SECONDS = 20.0
"""`train.comm_seconds`: a rank that tells nothing for half of it is lost, and 15 s later a rank that hangs is ended."""
LIMIT = COMM_SECONDS / 2 + 15.0 + 15.0
"""Seconds from a fault to the last rank's end, with 15 s for looks and ends on a busy machine."""
START_SECONDS = 180.0
PATIENCE = 90.0
SETTINGS = (
    "train.steps=1000000",
    "train.log_every=1000",
    "train.record_delivery=false",
    f"train.comm_seconds={COMM_SECONDS}",
)


BESIDE_PYTHON = "beside"
"""Folder of modules that each host's Python finds; empty but for a late clock."""
CLOCK = """import os, sys, time
_now = time.time
time.time = lambda: _now() - 3600.0
if "RANK" in os.environ:
    print("the clock of rank", os.environ["RANK"], "is an hour late", file=sys.stderr)
"""
"""`sitecustomize.py` of a host whose clock is late."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the last host, and the words by which the other ranks name it."""

    words: str
    """Pattern in the words of the launchers; {host} and {rank} are the last host and its rank."""
    strike: Callable[[NetHosts, str, Path], object] | None = None
    """Acts while the ranks train: takes the hosts, the last host's name and the folder."""
    before: Callable[[NetHosts, str, Path], object] | None = None
    """Acts before the start."""
    steps: int = 2
    """Steps before it: the watchdog compares with the steps that it has seen."""
    ends: bool = True
    """False if the run must go on."""
    alone: str = ""
    """Launcher under which only the last host ends soon, before it has met another."""


def _without_store(hosts: NetHosts, host: str, folder: Path) -> None:
    hosts.run(host, f"mount -t tmpfs none {folder}/store")


def _other_config(hosts: NetHosts, host: str, folder: Path) -> None:
    """The host has another copy of the config."""
    other = hosts.folder / "other.yaml"
    other.write_text((folder / "run.yaml").read_text() + "optimizer: {lr: 0.5}\n")
    hosts.run(host, f"mount --bind {other} {folder}/run.yaml")


def _late_clock(hosts: NetHosts, host: str, folder: Path) -> None:
    """The Python of the host is late: its kernel's clock is that of all hosts."""
    late = hosts.folder / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text(CLOCK)
    hosts.run(host, f"mount --bind {late} {folder}/{BESIDE_PYTHON}")


def _without_name(hosts: NetHosts, host: str, folder: Path) -> None:
    """The host does not know the first host's name."""
    few = hosts.folder / "few"
    hosts.run(host, f"grep -v {hosts.names[0]} /etc/hosts > {few}; mount --bind {few} /etc/hosts")


FAULTS = {
    "killed": Fault(
        words=r"rank {rank} on {host} told nothing for \d+ s: its host gives no answer",
        strike=lambda hosts, host, folder: hosts.kill(host),
    ),
    "cut off": Fault(
        words=r"rank {rank} on {host} told nothing for \d+ s: its host gives no answer|gave no answer for \d+ s",
        strike=lambda hosts, host, folder: hosts.cut(host),
    ),
    "another config": Fault(words=r"optimizer\.lr: 0\.5 for rank {rank}, ", before=_other_config),
    "stopped": Fault(
        words=r"rank {rank} on {host} told nothing for \d+ s: its host answers, so it was killed or stopped",
        strike=lambda hosts, host, folder: hosts.signal(host, signal.SIGSTOP),
    ),
    "slow": Fault(
        words=r"(takes \d+ s so far|no end of train at step).*rank {rank} on {host} (is at step|worked)",
        # A step of this model takes 40 ms of CPU time: then 10 s, above ten steps of busy cores and two looks.
        strike=lambda hosts, host, folder: hosts.throttle(host, 0.004),
        ends=False,
        steps=30,
    ),
    "without the store": Fault(words=r"rank {rank} on {host} failed .*(no such folder|store)", before=_without_store),
    "another clock": Fault(words="the clock of rank {rank} is an hour late", before=_late_clock, ends=False),
    # Agents of torchrun cannot hear of it: they wait for the node, up to the 600 s of their meeting. Ranks of deepspeed
    # meet by themselves, within `train.comm_seconds`.
    "a name that does not resolve": Fault(
        words=r"{first}, the node where all meet, does not resolve on {host}",
        before=_without_name,
        alone="torchrun",
    ),
}
QUICK = ("killed", "cut off", "another config")


def struck(folder: Path, launcher: str, count: int, name: str) -> dict[str, Any]:
    """A run with a fault: seconds until the last of the other ranks ended, and how it went."""
    fault, run = FAULTS[name], f"{launcher}-{count}-{name.replace(' ', '-')}"
    with NetHosts(count, ssh=launcher == "deepspeed") as hosts:
        host, others = hosts.names[-1], hosts.names[:-1]
        words = fault.words.format(host=host, rank=count - 1, first=hosts.names[0])
        (folder / BESIDE_PYTHON).mkdir(exist_ok=True)
        variables = {name: {"PYTHONPATH": str(folder / BESIDE_PYTHON)} for name in hosts.names}
        if fault.before:
            fault.before(hosts, host, folder)
        began = time.monotonic()
        started = launch(hosts, folder, run, launcher, SETTINGS, variables=variables)
        try:
            if fault.strike or not fault.ends:
                if not started.until(hosts, lambda: _trains(started, count, fault.steps), START_SECONDS):
                    return {"system": name, "value": None, "ok": False, "words": _last(started, others)}
                began = time.monotonic()
                if fault.strike:
                    fault.strike(hosts, host, folder)
            if fault.ends:
                return _ended(started, hosts, name, words, began)
            return _goes_on(started, hosts, name, words, began)
        finally:
            started.end()


def _ended(started: HostRun, hosts: NetHosts, name: str, words: str, began: float) -> dict[str, Any]:
    """The other ranks end by themselves, and each launcher of theirs names the cause."""
    victim, others = hosts.names[-1], hosts.names[:-1]
    if FAULTS[name].alone == started.run.partition("-")[0]:
        victim, others = "", [victim]
    shown = [host for host in others if host in started.launchers]

    def all_ended() -> bool:
        living = [rank for rank, (host, _) in started.ranks.items() if host != victim and rank not in started.ended]
        return not living and all(started.launchers[host].poll() is not None for host in shown)

    over = started.until(hosts, all_ended, START_SECONDS if not started.ranks else PATIENCE)
    seconds = {rank: round(at - began, 1) for rank, at in sorted(started.ended.items())}
    last = max(
        (at for rank, at in seconds.items() if started.ranks[rank][0] != victim), default=time.monotonic() - began
    )
    named = [host for host in shown if re.search(words, started.said(host))]
    return {
        "system": name,
        "value": last,
        "ok": over and named == shown and last <= (LIMIT if FAULTS[name].strike else START_SECONDS),
        "hung": [host for host in shown if started.launchers[host].poll() is None],
        "ended": seconds,
        "named by": named,
        "words": started.failure() or _line(words, _last(started, others)),
    }


def _goes_on(started: HostRun, hosts: NetHosts, name: str, words: str, began: float) -> dict[str, Any]:
    """All ranks take steps, and the watchdog's lines name the slow host."""
    first, count = max(started.steps()), len(hosts.names)

    def line() -> str:
        return _line(words, "".join(started.said(host) for host in started.launchers))

    def seen() -> bool:
        return _trains(started, count, first + 1) and bool(line())

    went_on = started.until(hosts, lambda: seen() or bool(started.ended), PATIENCE)
    return {
        "system": name,
        "value": round(time.monotonic() - began, 1),
        "ok": went_on and not started.ended,
        "ended": {rank: round(at - began, 1) for rank, at in started.ended.items()},
        "words": started.failure() or line(),
        "lagging": _lagging(started),
    }


def _trains(started: HostRun, count: int, step: int) -> bool:
    steps = started.steps()
    return len(steps) == count and min(steps) >= step


def _lagging(started: HostRun) -> list[int]:
    try:
        return lagging(read_watched(started.folder / "runs" / started.run)[1])
    except FmscaleError:
        return []


def _line(words: str, said: str) -> str:
    """The first line with a pattern; empty without one."""
    found = re.search(f".*({words}).*", said)
    return found.group() if found else ""


def _last(started: HostRun, hosts: Sequence[str]) -> str:
    return "\n".join(started.said(host)[-2000:] for host in hosts if host in started.launchers)


def host_claims(*, quick: bool, say: Callable[[str], None] = print) -> list[Claim]:
    """A claim for each launcher and number of hosts. Quick: three faults of two hosts, by torchrun."""
    places = [("torchrun", 2)] if quick else [("torchrun", 2), ("torchrun", 4), ("deepspeed", 2), ("deepspeed", 4)]
    claims = []
    reason = refused()
    with tempfile.TemporaryDirectory(prefix="fmscale-hosts-") as place:
        folder = Path(place) / "run"
        folder.mkdir()
        prepare(folder)
        for launcher, count in places:
            names = [name for name in FAULTS if not quick or name in QUICK]
            runs = []
            for name in [] if reason else names:
                runs.append(struck(folder, launcher, count, name))
                say(f"{launcher}, {count} hosts, {name}: {json.dumps(runs[-1])}")
            times = [run["value"] for run in runs if FAULTS[run["system"]].ends and FAULTS[run["system"]].strike]
            slowest = max((value for value in times if value is not None), default=None)
            claims.append(
                Claim(
                    id=f"R4.hosts.{launcher}.{count}",
                    what=f"{launcher}, {count} hosts: a fault of one until the last other end: {', '.join(names)}",
                    unit="s",
                    ours=slowest,
                    ratio=slowest,
                    target=f"<= {LIMIT:.0f} at comm_seconds {COMM_SECONDS:.0f}, 0 hangs, causes named; slow goes on",
                    ok=bool(runs) and all(run["ok"] for run in runs),
                    reasons={"fmscale": reason} if reason else {},
                    runs=runs,
                )
            )
    return claims


if __name__ == "__main__":
    for claim in host_claims(quick="--quick" in sys.argv):
        print(f"{'ok' if claim.ok else 'FAILED':6} {claim.id} {claim.ours} {claim.target}")
