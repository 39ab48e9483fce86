"""What the doctor says of a host, by figures of good and bad hosts; and the whole look at this one."""

import json
import resource
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.train.machine import host
from fmscale.train.machine.finding import Finding

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("finding", "status", "told"),
    [
        (host.open_files((1024, 1 << 20)), "warn", "ulimit -n 16384"),
        (host.open_files((1024, 4096)), "warn", "limits.conf"),
        (host.open_files((1 << 20, 1 << 20)), "ok", ""),
        (host.open_files((NO_LIMIT, NO_LIMIT)), "ok", ""),
        (host.processes(NO_LIMIT, "max\n"), "ok", ""),
        (host.processes(NO_LIMIT, "512\n"), "warn", "pids-limit"),
        (host.processes(1000, "max\n"), "warn", "ulimit -u"),
        (host.host_name("n", ["127.0.1.1"], ""), "warn", "GLOO_SOCKET_IFNAME"),
        (host.host_name("n", [], ""), "warn", "/etc/hosts"),
        (host.host_name("n", ["127.0.1.1"], "ib0"), "ok", ""),
        (host.host_name("n", ["10.0.0.1", "::1"], ""), "ok", ""),
        (host.clock(host.TIME_ERROR), "warn", "chronyd"),
        (host.clock(0), "ok", ""),
        (host.clock(-1), "skip", ""),
        (host.shared_memory(Path("/nowhere")), "fail", "tmpfs"),
    ],
)
def test_a_finding_says_what_to_do(finding: Finding, status: str, told: str) -> None:
    assert finding.status == status
    assert told in finding.remedy
    assert bool(finding.remedy) == (status in ("warn", "fail"))


def test_locked_memory_matters_where_infiniband_is(tmp_path: Path) -> None:
    assert host.locked_memory(65_536, tmp_path).status == "ok"
    (tmp_path / "mlx5_0").mkdir()
    told = host.locked_memory(65_536, tmp_path)
    assert told.status == "warn"
    assert "mlx5_0" in told.found
    assert host.locked_memory(NO_LIMIT, tmp_path).status == "ok"


def test_rooms_and_folders_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FREE_DISK", 0)
    monkeypatch.setattr(host, "SHARED_MEMORY", 0)
    assert host.disk("caches", tmp_path / "not" / "yet").status == "ok"
    assert host.shared_memory(tmp_path).status == "ok"
    assert host.compiled_kernels(tmp_path).status == "ok"
    monkeypatch.setattr(host, "FREE_DISK", 1 << 60)
    monkeypatch.setattr(host, "SHARED_MEMORY", 1 << 60)
    assert host.disk("caches", tmp_path).status == "warn"
    assert host.shared_memory(tmp_path).status == "warn"
    next(tmp_path.glob("fmscale-*")).chmod(0o777)
    assert host.compiled_kernels(tmp_path).status == "fail"


def test_a_name_is_looked_up() -> None:
    assert "127.0.0.1" in host.addresses_of("localhost")
    assert host.addresses_of("no-such-host.invalid") == []
    assert host.addresses_of(socket.gethostname()) == sorted(host.addresses_of(socket.gethostname()))


def test_the_verb_shows_every_part_and_its_status_follows() -> None:
    result = CliRunner().invoke(build_app(), ["doctor", "--json"])
    findings = json.loads(result.output)
    named = {one["name"] for one in findings}
    assert named >= {"torch", "communication", "compiler", "CPU Adam", "MPI", "open files", "shared memory", "clock"}
    assert all(one["remedy"] for one in findings if one["status"] in ("warn", "fail"))
    assert result.exit_code == any(one["status"] == "fail" for one in findings)
    table = CliRunner().invoke(build_app(), ["doctor"]).output
    assert all(one["found"] in table for one in findings if one["name"] in ("torch", "compiler", "open files"))


def test_nodes_and_a_store_exclude_each_other() -> None:
    result = CliRunner().invoke(build_app(), ["doctor", "/tmp", "--nodes"])
    assert result.exit_code == 2
