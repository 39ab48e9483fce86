"""A bucket of a real S3 server, and a plain client for it, which takes keys as they are."""

import hashlib
import hmac
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from tests.helpers.s3_server import S3Server


class Bucket:
    """A bucket of a running server."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.name = server.new_bucket()

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._request("PUT", key, data=data)

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self._request("GET", key)

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, in the order of their bytes. A listing has at most 1,000."""
        answer = ElementTree.fromstring(self._request("GET", "", {"list-type": "2", "prefix": prefix}))
        return sorted(one.text or "" for one in answer.iter() if one.tag.rpartition("}")[2] == "Key")

    def _request(self, method: str, key: str, query: dict[str, str] | None = None, data: bytes = b"") -> bytes:
        """A request under signature version 4 of AWS."""
        server = self.server
        host = f"{server.host}:{server.port}"
        path = quote(f"/{self.name}/{key}", safe="/~")
        asked = "&".join(
            f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted((query or {}).items())
        )
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
        signed = ";".join(headers)
        lines = [method, path, asked, *(f"{name}:{value}" for name, value in headers.items()), "", signed, digest]
        scope = f"{moment[:8]}/{server.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
        secret = f"AWS4{server.secret_key}".encode()
        for part in (*scope.split("/"), text):
            secret = hmac.digest(secret, part.encode(), "sha256")
        credential = f"AWS4-HMAC-SHA256 Credential={server.access_key}/{scope}"
        headers["authorization"] = f"{credential}, SignedHeaders={signed}, Signature={secret.hex()}"
        url = f"http://{host}{path}{'?' * bool(asked)}{asked}"
        request = urllib.request.Request(url, method=method, data=data if method == "PUT" else None, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """A new bucket of a server of its own, whose keys are in the environment meanwhile."""
    folder.mkdir()
    with S3Server(folder) as server:
        before = dict(os.environ)
        os.environ.update(server.environment)
        try:
            yield Bucket(server)
        finally:
            os.environ.clear()
            os.environ.update(before)
