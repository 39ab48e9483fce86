"""The agent of the launcher `local`: starts the ranks of a run on this node, waits for them, and ends all if one fails.

    python -m fmscale.launch.agent --ranks N --port P [--max-restarts R] -- COMMAND ...

Ranks get torchrun's variables, and rank 0 a socket that is bound to the port where they meet: no other process can take
that port between the choice and the meeting. The agent imports no torch, and nothing else that is slow.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from fmscale.launch.launch import LOOPBACK, SAVE_SECONDS

TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def run(command: Sequence[str], ranks: int, port: int, restarts: int) -> int:
    """Start `ranks` processes of `command`, again up to `restarts` times after a failure; return the first failed
    rank's status (128 + N if signal N ended it), or 0. SIGTERM, SIGINT and SIGHUP tell the ranks to end, for good.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *TOLD})
    try:
        for attempt in range(restarts + 1):
            status, told = _attempt(command, ranks, port, attempt, mask)
            if not status or told:
                break
            if attempt < restarts:
                _say(f"the ranks start again, {attempt + 1} of {restarts}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return status


def _attempt(command: Sequence[str], ranks: int, port: int, attempt: int, mask: Iterable[int]) -> tuple[int, bool]:
    """Run the ranks once; the status, and True if this process was told to end."""
    # Bound, and not yet listening: until rank 0 listens, the others are refused and ask again.
    with socket.socket() as meeting:
        meeting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            meeting.bind((LOOPBACK, port))
        except OSError as error:
            _say(f"The port where the ranks meet, {LOOPBACK}:{port}: {error.strerror}. Give another: --master-port P.")
            return 2, False
        shared = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(meeting.getsockname()[1]),
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }
        processes = [_start(command, rank, shared, meeting, mask) for rank in range(ranks)]
    status, told, deadline = 0, False, None
    while True:
        ends = [_end_of(process) for process in processes]
        failed = [rank for rank, end in enumerate(ends) if end]
        if failed and not status:
            end = ends[failed[0]] or 0
            status = end if end > 0 else 128 - end
            _say(f"rank {failed[0]} (process {processes[failed[0]].pid}) {_words(end)}")
        running = [process for process, end in zip(processes, ends, strict=True) if end is None]
        if not running:
            break
        if (status or told) and deadline is None:
            deadline = time.monotonic() + SAVE_SECONDS
            for process in running:
                process.terminate()
        received = signal.sigtimedwait({signal.SIGCHLD, *TOLD}, 60.0)
        told = told or (received is not None and received.si_signo in TOLD)
        if deadline is not None and time.monotonic() > deadline:
            for process in running:
                process.kill()
    for process in processes:
        process.wait()
    return status, told


def _start(
    command: Sequence[str], rank: int, shared: dict[str, str], meeting: socket.socket, mask: Iterable[int]
) -> "subprocess.Popen[bytes]":
    library = ctypes.CDLL(None)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # A killed agent leaves no rank behind: they save and end.
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "FMSCALE_MEETING": "" if rank else str(meeting.fileno())}
    return subprocess.Popen(
        command,
        env={**os.environ, **shared, **own},
        pass_fds=() if rank else (meeting.fileno(),),
        preexec_fn=prepare,
    )


def _end_of(process: "subprocess.Popen[bytes]") -> int | None:
    """Exit status of a rank, negative for a signal, or None while it runs. An ended rank stays a zombie until all have
    ended: other ranks read from it by which signal it was killed.
    """
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _words(end: int) -> str:
    return f"ended with status {end}" if end > 0 else f"was ended by signal {-end} ({signal.Signals(-end).name})"


def _say(words: str) -> None:
    print(f"fmscale launch: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--ranks", "--port", "--max-restarts"):
        parser.add_argument(option, type=int, default=0)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    sys.exit(run(given.command, given.ranks, given.port, given.max_restarts))
