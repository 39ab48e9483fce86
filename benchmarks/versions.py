"""`python -m benchmarks.versions PACKAGE...`: installed versions as JSON, for packages that are."""

import json
import platform
import sys
from collections.abc import Iterable
from importlib import metadata


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Python's version, and that of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(installed(sys.argv[1:])))
