"""Programs of a model run apart: limits, no network, and never unasked."""

import socket
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from fmscale.infer.load import TrainedModel, open_trained
from fmscale.infer.tasks import code, evaluate_task, load_task
from fmscale.infer.tasks.code import require_apart, run_program_text
from tests.infer.task_run import task_run, write_task

TASK = """
kind: code
text: "def one():\\n    "
tests: |
  assert {{ test }}
k: [1, 2]
samples: 2
temperature: 1.0
max_tokens: 3
documents: [{test: "True"}, {test: "False"}]
"""


@pytest.fixture
def apart() -> None:
    try:
        require_apart()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("apart")
def test_a_program_passes_or_fails_with_its_reason() -> None:
    assert run_program_text("assert 1 + 1 == 2", seconds=5) is None
    assert run_program_text("assert 1 + 1 == 3, 'sum'", seconds=5) == "AssertionError: sum"
    assert run_program_text("x = (", seconds=5) == "SyntaxError: '(' was never closed"
    assert run_program_text("import sys; sys.exit(3)", seconds=5) == "status 3"


@pytest.mark.slow
@pytest.mark.usefixtures("apart")
def test_a_program_has_limits() -> None:
    assert run_program_text("while True: pass", seconds=1) == "not done within 1 CPU seconds"
    assert run_program_text("x = 'a' * 2**31", seconds=5) == "MemoryError"
    assert "File too large" in str(run_program_text("open('f', 'w').write('a' * 2**21)", seconds=5))
    sleeping = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)'])"
    assert run_program_text(sleeping, seconds=5) is None  # and its process ended with it, or this would wait


@pytest.mark.usefixtures("apart")
def test_a_program_has_no_network_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "word")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reason = run_program_text(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)", seconds=5)
        assert reason is not None
        assert "unreachable" in reason
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert run_program_text("import os; assert 'SECRET' not in os.environ", seconds=5) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return open_trained(task_run(tmp_path_factory.mktemp("code")))


@pytest.mark.usefixtures("apart")
def test_pass_at_k_of_replies(trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(program: str, *, seconds: int) -> str | None:
        ran.append(program)
        return run_program_text("assert " + program.rpartition("assert ")[2], seconds=seconds)

    monkeypatch.setattr("fmscale.infer.tasks.evaluate.run_program_text", run)
    result = evaluate_task(trained, load_task(write_task(tmp_path, "c", TASK)), run_code=True)
    assert [row["right"] for row in result.documents] == [2, 0]
    assert {metric.name: metric.value for metric in result.metrics} == {"pass@1": 0.5, "pass@2": 0.5}
    replies = [reply for row in result.documents for reply in row["replies"]]
    tests = ["True", "True", "False", "False"]
    assert ran == [f"def one():\n    {r}\nassert {t}\n\n" for r, t in zip(replies, tests, strict=True)]


def test_code_is_never_run_unasked_or_with_network(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(write_task(tmp_path, "c", TASK))
    with pytest.raises(ConfigError, match="--run-code"):
        evaluate_task(trained, task)
    monkeypatch.setattr(code, "APART", ("false",))
    with pytest.raises(ConfigError, match="this machine does not allow"):
        evaluate_task(trained, task, run_code=True)
