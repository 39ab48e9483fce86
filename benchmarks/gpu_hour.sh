#!/bin/sh
# Checks claims on one GPU in 540 s, on a machine with torch, Triton and no network; results are on disk at every
# moment. It uses this checkout's environment if there is one, else python3 with the wheels of
# benchmarks/gpu_wheels.sh.
# benchmarks/gpu_hour.sh [train|kernels] [--seconds N] [--dry-run] [--only STEPS] [--out FOLDER] [--scratch FOLDER]
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks.gpu_hour "$@"
