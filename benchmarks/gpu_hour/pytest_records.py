"""A pytest plugin (`-p benchmarks.gpu_hour.pytest_records`): a record of every test as it ends."""

import os
from typing import TextIO

import pytest

from benchmarks.gpu_hour.emit import emit

# A copy of standard output, before pytest captures it.
STREAM: TextIO = os.fdopen(os.dup(1), "w")
REASON_CHARACTERS = 1500


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--deal=N/COUNT`: run every COUNT-th test, from the N-th on."""
    parser.addoption("--deal", default="0/1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this process's share of the chosen tests."""
    mine, count = map(int, config.getoption("--deal").split("/"))
    items[:] = items[mine::count]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Emit the names of the tests, so that a reader can count unfinished tests."""
    emit(STREAM, about="collected", tests=[item.nodeid for item in session.items])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Emit a record a test: of its call, or of the cause that prevented the call."""
    if report.when == "call" or report.outcome != "passed":
        why = "" if report.outcome == "passed" else str(report.longrepr)[-REASON_CHARACTERS:]
        emit(
            STREAM, about="test", test=report.nodeid, phase=report.when, outcome=report.outcome,
            seconds=round(report.duration, 3), reason=why,
        )  # fmt: skip
