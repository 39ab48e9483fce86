"""`python -m fmscale.kernels.bench`, from an install or a bare checkout with only torch and triton."""

import sys

from fmscale.kernels.bench.command import main

sys.exit(main())
