"""A Slurm and ssh hosts, for the session."""

from collections.abc import Iterator

import pytest

from tests.helpers import slurm, ssh_hosts
from tests.helpers.slurm import Slurm
from tests.helpers.ssh_hosts import SshHosts


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with Slurm(2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def hosts() -> Iterator[SshHosts]:
    """Two hosts that ssh reaches."""
    if reason := ssh_hosts.missing():
        pytest.skip(reason)
    with SshHosts(2) as hosts:
        yield hosts
