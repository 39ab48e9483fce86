"""`python -m benchmarks.versions PACKAGE...`: versions of installed packages as JSON."""

import json
import sys

from fmscale.runtime.provenance import versions

if __name__ == "__main__":
    print(json.dumps(versions(sys.argv[1:])))
