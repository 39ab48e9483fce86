#!/bin/sh
# What one GPU shows of the claims in 540 s, on a machine that has torch, Triton and no network; results are on disk
# at every moment. The environment of this checkout is taken where there is one, else python3 with the wheels of
# benchmarks/gpu_wheels.sh.
# benchmarks/gpu_hour.sh [train|kernels] [--seconds N] [--dry-run] [--only STEPS] [--out FOLDER] [--scratch FOLDER]
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks.gpu_hour "$@"
