"""Links between ranks: nodes that cannot reach each other, then latency and bandwidth from each rank to the next."""

import json
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.train.machine.finding import Finding

DIAL_SECONDS = 5.0
DIALS = 32
"""Nodes that are dialled at once."""
ROUNDS = 50
"""Messages of 8 bytes there and back; the median counts."""
LARGE = 16 << 20
"""Bytes of a large message."""
LARGE_ROUNDS = 4
SLOW = 0.5
"""A link below this share of the median bandwidth of its kind, or above 1/SLOW of the median latency, is named."""


class Link(NamedTuple):
    """From one rank to the next."""

    source: int
    """Rank that sends first."""
    target: int
    """The next rank."""
    kind: str
    """"node" inside a node, "network" between nodes."""
    microseconds: float
    """Median time of a small message there and back, halved."""
    megabytes_per_second: float
    """10^6 bytes a second of a large message."""


def unreached(world: World, waits: HostWaits, address: str) -> list[tuple[int, int, str]]:
    """(rank, rank, reason) for nodes that cannot connect, by the first rank of each, as all ranks learn it.

    Every node listens at `address`, which is its own, and dials all others: without this look a collective would wait
    for its time-out, and name no rank.
    """
    first = world.local_rank == 0
    with _listener(address) if first else socket.socket() as listener:
        if first:
            threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        place = [address, listener.getsockname()[1]] if first else []
        places = [json.loads(text) for text in waits.barrier("addresses", value=json.dumps(place))]
        failed = dial(world.rank, places) if first else []
        found = waits.barrier("dialled", value=json.dumps(failed))
        if first:
            listener.shutdown(socket.SHUT_RDWR)  # ends the thread
    return [(source, target, reason) for text in found for source, target, reason in json.loads(text)]


def dial(own: int, places: Sequence[Sequence[Any]]) -> list[tuple[int, int, str]]:
    """(own, rank, reason) for each rank whose (address, port) does not answer; a rank without a place is left out."""

    def try_one(rank: int) -> str:
        try:
            socket.create_connection((places[rank][0], places[rank][1]), timeout=DIAL_SECONDS).close()
        except OSError as error:
            return f"{places[rank][0]}: {error.strerror or error}"
        return ""

    others = [rank for rank, place in enumerate(places) if place and rank != own]
    with ThreadPoolExecutor(DIALS) as pool:
        reasons = list(pool.map(try_one, others))
    return [(own, rank, reason) for rank, reason in zip(others, reasons, strict=True) if reason]


def _listener(address: str) -> socket.socket:
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def measure_ring(world: World, waits: HostWaits, device: str) -> list[Link]:
    """The link from each rank to the next, over the default group of torch.distributed; the same list on all ranks.

    Links run in turns, so that no rank has two at once: first from even ranks, then from odd ranks; with an odd number
    of ranks the last one has a turn of its own.
    """
    nodes = [int(text) for text in waits.barrier("nodes", value=str(world.node))]
    size, links = world.world_size, list[list[object]]()
    edges = [(source, (source + 1) % size) for source in range(size if size > 2 else size - 1)]
    last = [edges.pop()] if size % 2 and size > 2 else []
    for turn in (edges[::2], edges[1::2], last):
        for source, target in turn:
            if world.rank in (source, target):
                seconds, large = _exchange(world.rank == source, target if world.rank == source else source, device)
                if world.rank == source:
                    kind = "node" if nodes[source] == nodes[target] else "network"
                    rate = LARGE / large / 1e6
                    links.append([source, target, kind, seconds * 5e5, rate])
        waits.barrier("turn")
    found = waits.barrier("links", value=json.dumps(links))
    return [Link(*link) for link in sorted(link for text in found for link in json.loads(text))]


def _exchange(sends: bool, peer: int, device: str) -> tuple[float, float]:
    """Seconds of a small message there and back, and of a large one way: medians over the rounds, without the first."""
    small, large = (torch.zeros(size, dtype=torch.uint8, device=device) for size in (8, LARGE))
    pings = [_round(small, small, sends, peer) for _ in range(ROUNDS + 1)]
    larges = [_round(large, small, sends, peer) for _ in range(LARGE_ROUNDS + 1)]
    ping = statistics.median(pings[1:])
    return ping, max(statistics.median(larges[1:]) - ping / 2, 1e-9)


def _round(there: Tensor, back: Tensor, sends: bool, peer: int) -> float:
    begin = time.perf_counter()
    if sends:
        distributed.send(there, peer)
        distributed.recv(back, peer)
    else:
        distributed.recv(there, peer)
        distributed.send(back, peer)
    if there.is_cuda:
        torch.cuda.synchronize(there.device)
    return time.perf_counter() - begin


def judge_links(links: Sequence[Link], names: Sequence[str]) -> list[Finding]:
    """A finding for each kind of link, and for each link that is slow beside the others; `names`: host of each rank."""
    findings = []
    for kind in sorted({link.kind for link in links}):
        alike = [link for link in links if link.kind == kind]
        rate = statistics.median(link.megabytes_per_second for link in alike)
        delay = statistics.median(link.microseconds for link in alike)
        found = f"{len(alike)} links, median {delay:,.0f} us and {rate:,.0f} MB/s"
        findings.append(Finding(name=f"links, {kind}", status="ok", found=found))
        for link in alike:
            if link.megabytes_per_second < SLOW * rate or link.microseconds > delay / SLOW:
                place = f"rank {link.source} on {names[link.source]} to rank {link.target} on {names[link.target]}"
                found = f"{place}: {link.microseconds:,.0f} us, {link.megabytes_per_second:,.0f} MB/s"
                remedy = "Compare its cables, interfaces and load with those of the others, or leave the node out."
                findings.append(Finding(name="slow link", status="warn", found=found, remedy=remedy))
    return findings
