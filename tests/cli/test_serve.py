"""`fmscale serve` where it does not start; tests/infer/server has the server itself."""

import socket
import sys

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from tests.infer.talkers import save_talker


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("serve") / "store")
    save_talker(url, "plain", template=False)
    return f"{url}#plain"


def serve(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["serve", *words])
    assert isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def test_without_uvicorn_the_command_that_installs_it_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, err = serve(address)
    assert status == 2
    assert "remedy: pip install 'fmscale[serve]'" in err


def test_a_run_without_a_template_is_refused(address: str) -> None:
    status, err = serve(address, "--port", "0")
    assert status == 2
    assert "The run has no chat template\n  found:  plain\n  remedy: `fmscale generate` continues" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "a" * 300])
def test_a_place_where_it_cannot_listen_is_refused(address: str, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, err = serve(address, "--host", host, "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "The server cannot listen there" in err
    assert "remedy: Give another --port" in err
