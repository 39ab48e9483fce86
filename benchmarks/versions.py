"""`python -m benchmarks.versions PACKAGE...`: installed versions as JSON, for packages that are."""

import json
import sys

from fmscale.runtime.provenance import versions

if __name__ == "__main__":
    print(json.dumps(versions(sys.argv[1:])))
