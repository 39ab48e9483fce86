"""`python -m benchmarks.kernels`, from a checkout with only torch and triton."""

import sys

from benchmarks.kernels.command import main

sys.exit(main())
