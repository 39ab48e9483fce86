"""The manifests of Kubernetes and SkyPilot: fields that their schemas have, and a start like that of `fmscale launch`.

No Kubernetes and no cloud is here. `tests/fixtures/make_manifest_fields.py` validates the manifests by the schemas of
JobSet (CRD v1alpha2 of commit 08dfbdf) and of SkyPilot 0.14.1, and records their fields. The shell of both runs here,
with a stand-in for `fmscale`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fmscale.launch.launch import SAVE_SECONDS

LAUNCH = Path(__file__).parents[2] / "launch"
FIELDS = Path(__file__).parents[1] / "fixtures" / "manifest_fields.json"
MANIFESTS = {name: LAUNCH / name / "train.yaml" for name in ("kubernetes", "skypilot")}
STAND_IN = """
import os, signal, sys
open("said", "w").write("".join(f"{word}\\n" for word in sys.argv[1:]))
if os.path.exists("wait"):
    signal.signal(signal.SIGTERM, lambda *_: (open("saved", "w"), sys.exit(0)))
    open("ready", "w")
    signal.pause()
sys.exit(int(os.environ.get("STATUS", "0")))
"""
KINDS = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


def used(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the plain values of a manifest: "spec.jobs[].name"; a dot in a name is written as a colon."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from used(part, f"{path}.{name.replace('.', ':')}" if path else name)
    elif isinstance(value, list):
        for part in value:
            yield from used(part, f"{path}[]")
    else:
        yield path


def values(value: Any, names: list[str]) -> list[Any]:
    """Values of a manifest at the names of a path, [] for each element of a list."""
    if not names:
        return [value]
    name = names[0].replace(":", ".")
    parts = value if name == "[]" else [value[name]] if name in value else []
    return [found for part in parts for found in values(part, names[1:])]


def read(name: str) -> Any:
    return yaml.safe_load(MANIFESTS[name].read_text())


def container() -> Any:
    job = read("kubernetes")["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_field_is_one_of_the_schema_and_has_its_type(name: str) -> None:
    manifest, fields = read(name), json.loads(FIELDS.read_text())[name]
    assert set(used(manifest)) == fields.keys()
    for path, allowed in fields.items():
        found = values(manifest, path.replace("[]", ".[]").split("."))
        assert found, path
        for value in found:
            assert value in allowed or KINDS[type(value)] in allowed, (path, value)


def test_the_numbers_of_the_jobset_agree() -> None:
    spec = read("kubernetes")["spec"]
    job, variables = spec["replicatedJobs"][0]["template"]["spec"], {one["name"]: one for one in container()["env"]}
    pods = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == int(variables["NODES"]["value"])
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == int(variables["PROCS"]["value"])
    assert pods["terminationGracePeriodSeconds"] == SAVE_SECONDS
    first = f"{read('kubernetes')['metadata']['name']}-{spec['replicatedJobs'][0]['name']}-0-0"
    assert variables["MASTER_ADDR"]["value"] == f"{first}.{spec['network']['subdomain']}"
    mounted = {one["name"] for one in container()["volumeMounts"]}
    assert mounted == {one["name"] for one in pods["volumes"]}


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which fmscale writes its arguments to `said`, and with the file `wait` ends at a SIGTERM."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "fmscale"
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def shell(name: str) -> list[str]:
    if name == "skypilot":
        return ["bash", "-euc", read(name)["run"]]
    return [*container()["command"], *container()["args"]]


def test_skypilot_starts_a_node_by_its_variables(stand_in: dict[str, str], tmp_path: Path) -> None:
    sky = {"NUM_NODES": "2", "NUM_GPUS_PER_NODE": "8", "NODE_RANK": "1", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    variables = {f"SKYPILOT_{key}": value for key, value in sky.items()} | {"CONFIG": "run.yaml", "STORE": "s3://b/p"}
    subprocess.run(shell("skypilot"), cwd=tmp_path, env={**stand_in, **variables}, check=True)
    words = "launch run.yaml store.url=s3://b/p --nodes 2 --procs-per-node 8 --node-rank 1 --master-addr 10.0.0.1"
    assert (tmp_path / "said").read_text().split("\n")[:-1] == words.split(" ")


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_a_pod_starts_its_node_and_ends_with_its_status(stand_in: dict[str, str], tmp_path: Path, status: str) -> None:
    variables = {one["name"]: one["value"] for one in container()["env"]} | {"MASTER_ADDR": "localhost"}
    pod = {**stand_in, **variables, "JOB_COMPLETION_INDEX": "1", "STATUS": status}
    done = subprocess.run(shell("kubernetes"), cwd=tmp_path, env=pod)
    assert done.returncode == int(status)
    words = "launch run.yaml --nodes 2 --procs-per-node 8 --node-rank 1 --master-addr localhost"
    assert (tmp_path / "said").read_text().split("\n")[:-1] == words.split(" ")


def test_a_pod_that_is_stopped_saves_and_does_not_count_as_complete(stand_in: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    variables = {one["name"]: one["value"] for one in container()["env"]} | {"MASTER_ADDR": "localhost"}
    pod = subprocess.Popen(
        shell("kubernetes"), cwd=tmp_path, env={**stand_in, **variables, "JOB_COMPLETION_INDEX": "0"}
    )
    try:
        while not (tmp_path / "ready").exists():
            assert pod.poll() is None
            time.sleep(0.02)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=30) == 143
    finally:
        pod.kill()
    assert (tmp_path / "saved").exists()
