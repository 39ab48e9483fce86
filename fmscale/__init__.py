"""fmscale: train foundation models on many GPUs and never let them wait for data.

A parallel store (`fmscale.store`), samples as a pure function of their number (`fmscale.data`),
and Triton kernels (`fmscale.kernels`). The public names are listed in docs/api.md.
"""

from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout `kernels/` and `launch/` lie beside this package; installed, under it.
# This lets `python -m fmscale.kernels.bench` run where only torch and triton are installed.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout))
