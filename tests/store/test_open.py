"""One URL, one store: allowed and refused parts of a URL."""

import importlib.util
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import AccessDenied, ConfigError, FmscaleError, StoreError, StoreUnavailable
from fmscale.store.backends.credentials import profile_credentials
from fmscale.store.backends.fsspec import FsspecBackend
from fmscale.store.backends.local import LocalBackend
from fmscale.store.backends.objects import ObjectBackend
from fmscale.store.open import open_store, parse_url
from fmscale.text import scrub
from tests.helpers.s3_server import S3Server


def test_path_and_file_url_are_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(str(tmp_path / "a store")).put("x", b"1")
    assert open_store((tmp_path / "a store").as_uri()).get("x") == b"1"
    monkeypatch.chdir(tmp_path)
    assert open_store("a store").get("x") == b"1"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/a store").get("x") == b"1"
    assert isinstance(open_store("."), LocalBackend)


def test_each_scheme_finds_its_backend(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://m"), ObjectBackend)
    assert isinstance(open_store("s3://bucket/p?region=us-east-1&anonymous=true"), ObjectBackend)
    assert isinstance(open_store("gs://bucket/p"), ObjectBackend)
    assert isinstance(open_store(f"local://{tmp_path}"), FsspecBackend)


def test_azure_without_an_account_says_so() -> None:
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/p")


def test_memory_stores_are_shared_by_name() -> None:
    open_store("memory://shared-1").put("x", b"1")
    assert open_store("memory://shared-1").get("x") == b"1"
    assert not open_store("memory://shared-2").exists("x")


def test_s3_url_taken_apart() -> None:
    place = parse_url("s3://bucket/a/b/?endpoint=http://host:9000&region=eu-west-1&profile=me")
    assert (place.scheme, place.bucket, place.prefix) == ("s3", "bucket", "a/b")
    assert place.shown == "s3://bucket/a/b?endpoint=http://host:9000&region=eu-west-1"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket?endpint=http://h", "Did you mean 'endpoint'"),
        ("s3://bucket?colour=red", "Valid: anonymous, endpoint"),
        ("gs://bucket?endpoint=http://h", "no such option"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket?endpoint=host:9000", "endpoint is not a URL"),
        ("s3://bucket?anonymous=perhaps", "true or false"),
        ("memory://name/path", "no folders"),
        ("nosuch://x/y", "no store can be opened"),
        ("/data?x#", None),
    ],
)
def test_url_that_cannot_be_used(url: str, says: str | None, tmp_path: Path) -> None:
    if says is None:
        assert isinstance(open_store(str(tmp_path) + url), LocalBackend)
        return
    with pytest.raises(ConfigError, match=says) as caught:
        open_store(url)
    assert caught.value.remedy


def test_prefix_must_not_climb() -> None:
    with pytest.raises(StoreError, match="a key must be"):
        open_store("s3://bucket/a/../../other")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:s3cr3t@bucket/p",
        "s3://bucket?endpoint=http://AKIAKEY:s3cr3t@host:1",
        "gs://AKIAKEY:s3cr3t@bucket",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="must not contain credentials") as caught:
        open_store(url)
    assert "s3cr3t" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_scrub() -> None:
    text = "GET https://u:pw@h/k?X-Amz-Signature=abc&X-Amz-Credential=AK%2F1&x=1&sig=zz&token=t"
    assert scrub(text) == ("GET https://***@h/k?X-Amz-Signature=***&X-Amz-Credential=***&x=1&sig=***&token=***")


def test_prefixes_of_one_bucket_are_apart(s3: S3Server, s3_bucket: str) -> None:
    one, other = open_store(s3.url(s3_bucket, "apart/one")), open_store(s3.url(s3_bucket, "apart/other"))
    one.put("x", b"1")
    assert not other.exists("x")
    assert [info.key for info in one.list_objects()] == ["x"]
    assert open_store(s3.url(s3_bucket)).get("apart/one/x") == b"1"
    assert open_store(s3.url(s3_bucket, "apart")).list_names() == ["one"]


def test_profiles(s3: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[good]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
        "[bad]\naws_access_key_id = nobody\naws_secret_access_key = x\n"
    )
    for name in s3.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    open_store(s3.url(s3_bucket) + "&profile=good").put("from-profile", b"1")
    with pytest.raises(AccessDenied):
        open_store(s3.url(s3_bucket) + "&profile=bad").get("from-profile")
    monkeypatch.setenv("AWS_PROFILE", "good")
    assert open_store(s3.url(s3_bucket)).get("from-profile") == b"1"
    with pytest.raises(ConfigError, match="profile") as caught:
        open_store(s3.url(s3_bucket) + "&profile=goood")
    assert str(file) in caught.value.remedy


@pytest.mark.skipif(importlib.util.find_spec("boto3") is not None, reason="boto3 answers for such profiles")
def test_profile_that_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text("[login]\nsso_start_url = y\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(ConfigError, match="boto3"):
        open_store("s3://bucket?region=us-east-1&profile=login")


@pytest.mark.parametrize("importable", [False, True])
def test_rotated_profile_is_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importable: bool) -> None:
    """Keys in a file need no boto3, which would read them once: here it ends the process that loads it."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[profile rotating]\nregion = eu-west-7\n")
    if importable:
        (tmp_path / "boto3.py").write_text("raise SystemExit('boto3 was loaded')")
        monkeypatch.syspath_prepend(tmp_path)
    keys = []
    file.write_text("[rotating]\naws_access_key_id = old\naws_secret_access_key = x\n")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    provider = profile_credentials("rotating")
    assert provider is not None
    for name in ("old", "new"):
        file.write_text(f"[rotating]\naws_access_key_id = {name}\naws_secret_access_key = x\n")
        answer: Any = provider()
        keys.append(answer["access_key_id"])
        assert timedelta(0) < answer["expires_at"] - datetime.now(UTC) <= timedelta(minutes=10)
    assert keys == ["old", "new"]
    region: Any = provider
    assert region.config == {"region": "eu-west-7"}
    (tmp_path / "config").write_text("[profile rotating]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = base\n")
    with pytest.raises(SystemExit if importable else ConfigError, match="boto3"):
        profile_credentials("rotating")


def test_environment_keys_come_before_the_default_profile(
    s3: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = nobody\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    open_store(s3.url(s3_bucket)).put("from-environment", b"1")


def test_anonymous_requests_are_not_signed(s3: S3Server, s3_bucket: str) -> None:
    with pytest.raises(AccessDenied, match="AccessDenied"):
        open_store(s3.url(s3_bucket) + "&anonymous=true").get("x")


def test_opening_a_store_imports_no_torch() -> None:
    code = "import sys, json, fmscale.store.open; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) is False


@pytest.mark.parametrize(
    ("url", "kind", "text"),
    [
        ("ftp://127.0.0.1:9/x", StoreUnavailable, "ConnectionRefusedError"),
        ("simplecache::ftp://127.0.0.1:9/x", StoreUnavailable, "ConnectionRefusedError"),
        ("zip:///nowhere/at.zip", StoreUnavailable, "does not answer, or is not there"),
        ("reference://x", ConfigError, "no store can be opened for this URL"),
        ("ftp://[::1/x", ConfigError, "not a URL: Invalid IPv6 URL"),
        ("s3://b/p?endpoint=http://[::1", ConfigError, "not a URL: Invalid IPv6 URL"),
    ],
)
def test_a_store_that_cannot_be_opened_is_an_error_with_a_remedy(url: str, kind: type[FmscaleError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        open_store(url)
    assert caught.value.remedy
