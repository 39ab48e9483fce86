"""S3 credentials from a profile of the AWS files, read again before they expire.

obstore itself reads the environment, container and instance roles and web identity, but not `~/.aws/credentials`.
boto3, where installed, adds credentials that need a login (SSO, assumed roles, processes); a profile with keys is read
here, with or without boto3.
"""

import configparser
import importlib
import importlib.util
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential, S3CredentialProvider

REFRESH = timedelta(minutes=10)
"""Longest time until a rotated key in the file is read."""

LOGIN = {"role_arn", "sso_session", "sso_start_url"}
"""Settings of a profile that come before its keys, in boto3 and the command line of AWS."""


class _Provider:
    """Credentials that `read` gives, anew for each REFRESH; obstore takes the region from `config`."""

    def __init__(self, read: "Callable[[], S3Credential]", region: str | None) -> None:
        self._read = read
        self.config: S3Config = {"region": region} if region else {}

    def __call__(self) -> "S3Credential":
        return self._read()


def profile_credentials(profile: str | None) -> "S3CredentialProvider | None":
    """A provider for `profile`, for $AWS_PROFILE, or for `default` where the environment has no key.

    None leaves the choice to obstore (environment, roles). Raises ConfigError for a profile that is
    missing or needs boto3.
    """
    asked = profile or os.environ.get("AWS_PROFILE")
    if not profile and "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    name = asked or "default"
    if not asked and (not _section(_path(), name) or "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ):
        return None
    settings = _profile(name)
    login = bool(LOGIN & settings.keys()) or "aws_access_key_id" not in settings
    if login and importlib.util.find_spec("boto3") is not None:
        _from_boto3(asked)
        read: Callable[[], S3Credential] = lambda: _from_boto3(asked)  # noqa: E731
    elif not settings:
        raise ConfigError(
            "no such profile in the AWS credentials file",
            found=asked,
            remedy=f"Profiles are read from {_path()}: add it there, or set AWS_ACCESS_KEY_ID instead.",
        )
    elif login:
        raise ConfigError(
            "this profile needs more than static keys",
            found=f"{name}: {', '.join(sorted(LOGIN & settings.keys())) or 'no aws_access_key_id'}",
            remedy="Install boto3 for SSO, roles and processes.",
        )
    else:
        read = lambda: _read(name)  # noqa: E731
    known = {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys()
    return _Provider(read, None if known else settings.get("region"))


def _from_boto3(profile: str | None) -> "S3Credential":
    """Credentials of a new session: a session reads the files once and keeps what it found."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    boto3: Any = importlib.import_module("boto3")
    errors: Any = importlib.import_module("botocore.exceptions")
    try:
        return Boto3CredentialProvider(boto3.session.Session(profile_name=profile), ttl=REFRESH)()
    except (errors.BotoCoreError, ValueError) as error:
        raise ConfigError(
            "boto3 finds no credentials for this profile",
            found=f"{profile} ({error})",
            remedy=f"Add it to {_path()} or ~/.aws/config, or log in (aws sso login).",
        ) from error


def _path() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()


def _profile(name: str) -> dict[str, str]:
    """Settings of a profile in both AWS files; those of the credentials file come first."""
    config = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    return _section(config, name if name == "default" else f"profile {name}") | _section(_path(), name)


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    return dict(parser[name]) if parser.has_section(name) or name == parser.default_section else {}


def _read(name: str) -> "S3Credential":
    settings = _profile(name)
    if "aws_access_key_id" not in settings:
        raise ConfigError(
            "the keys of this profile disappeared from the AWS credentials file",
            found=name,
            remedy="Put them back, or name another profile with AWS_PROFILE.",
        )
    return {
        "access_key_id": settings["aws_access_key_id"],
        "secret_access_key": settings["aws_secret_access_key"],
        "token": settings.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + REFRESH,
    }
