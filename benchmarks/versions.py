"""`python -m benchmarks.versions PACKAGE...`: installed versions as JSON, for packages that are."""

import json
import platform
import sys
from importlib import metadata


def main() -> None:
    """Print them."""
    found = {"python": platform.python_version()}
    for package in sys.argv[1:]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    print(json.dumps(found))


if __name__ == "__main__":
    main()
