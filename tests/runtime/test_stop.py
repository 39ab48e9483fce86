"""Stop signals: seen by the process that runs, ignored by its helpers."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from fmscale.runtime.stop import Stop, StopFlag, ignore_stop_signals


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    flag = StopFlag().install()
    yield flag
    flag.remove()


def test_signals_set_the_flag_and_the_strongest_stays(flag: StopFlag) -> None:
    assert not flag
    reasons = []
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
        reasons.append(flag.reason)
    assert reasons == [Stop.SIGUSR1, Stop.SIGTERM, Stop.SIGTERM]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    flag = StopFlag().install()
    assert signal.getsignal(signal.SIGTERM) != before
    flag.remove()
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_is_a_stop_however_often_a_launcher_passes_it_on(flag: StopFlag) -> None:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.reason is Stop.SIGINT


def test_the_second_ctrl_c_of_a_process_alone_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    flag = StopFlag().install(alone=True)
    os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.reason is Stop.SIGINT
    assert "once more ends without" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    flag.remove()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """Signals as after a shell's `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        flag = StopFlag().install(alone=True)
        os.kill(os.getpid(), signal.SIGINT)
        assert not flag
        flag.remove()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_deadline_stops_and_a_signal_outranks_it() -> None:
    assert not StopFlag(seconds=1000)
    over = StopFlag(seconds=0).install()
    reasons = [over.reason]
    os.kill(os.getpid(), signal.SIGTERM)
    reasons.append(over.reason)
    over.remove()
    assert reasons == [Stop.DEADLINE, Stop.SIGTERM]


def _handlers(pipe: Connection, deaf: bool) -> None:
    if deaf:
        ignore_stop_signals()
    pipe.send([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)])


@pytest.mark.parametrize(("method", "deaf"), [("fork", False), ("spawn", True)])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_helper_processes_are_deaf(flag: StopFlag, method: str, deaf: bool) -> None:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    helper = context.Process(target=_handlers, args=(theirs, deaf))
    helper.start()
    assert ours.recv() == [signal.SIG_IGN] * 3
    helper.join()


def test_a_process_that_execs_gets_default_handlers_again(flag: StopFlag) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGTERM).name)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "SIG_DFL\n"
