"""S3 credentials from a profile of the AWS files, read again before they expire.

obstore itself reads the environment, container and instance roles and web identity, but not `~/.aws/credentials`.
boto3, where installed, adds credentials that need a login (SSO, assumed roles, processes).
"""

import configparser
import importlib
import importlib.util
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3CredentialProvider

REFRESH = timedelta(minutes=10)
"""Longest time until a rotated key in the file is read."""


def profile_credentials(profile: str | None) -> "S3CredentialProvider | None":
    """A provider for `profile`, for $AWS_PROFILE, or for `default` where the environment has no key.

    None leaves the choice to obstore (environment, roles). Raises ConfigError for a profile that is
    missing or needs boto3.
    """
    asked = profile or os.environ.get("AWS_PROFILE")
    if not profile and "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    section = _section(asked or "default")
    if not asked and (section is None or "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ):
        return None
    if importlib.util.find_spec("boto3") is not None:
        return _from_boto3(asked)
    if section is None:
        raise ConfigError(
            "no such profile in the AWS credentials file",
            found=asked,
            remedy=f"Profiles are read from {_path()}: add it there, or set AWS_ACCESS_KEY_ID instead.",
        )
    if "aws_access_key_id" not in section:
        raise ConfigError(
            "this profile has no static keys", found=asked, remedy="Install boto3 for SSO, roles and processes."
        )
    name = asked or "default"
    return lambda: _read(name)


def _from_boto3(profile: str | None) -> "S3CredentialProvider":
    from obstore.auth.boto3 import Boto3CredentialProvider

    boto3: Any = importlib.import_module("boto3")
    errors: Any = importlib.import_module("botocore.exceptions")
    try:
        return Boto3CredentialProvider(boto3.session.Session(profile_name=profile))
    except (errors.BotoCoreError, ValueError) as error:
        raise ConfigError(
            "boto3 finds no credentials for this profile",
            found=f"{profile} ({error})",
            remedy=f"Add it to {_path()} or ~/.aws/config, or log in (aws sso login).",
        ) from error


def _path() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()


def _section(name: str) -> configparser.SectionProxy | None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(_path())
    return parser[name] if parser.has_section(name) or name == parser.default_section else None


def _read(name: str) -> "S3Credential":
    section = _section(name)
    if section is None:
        raise ConfigError(
            "the profile disappeared from the AWS credentials file",
            found=name,
            remedy="Put it back, or name another with AWS_PROFILE.",
        )
    return {
        "access_key_id": section["aws_access_key_id"],
        "secret_access_key": section["aws_secret_access_key"],
        "token": section.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + REFRESH,
    }
