"""`fmscale bench kernels`: ours and every peer in one run, checked before they are timed."""

from fmscale.kernels.bench.command import main

__all__ = ["main"]
