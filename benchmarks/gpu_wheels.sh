#!/bin/sh
# Collects the packages that a GPU machine without a network lacks into benchmarks/gpu-wheels/: run it here, then copy
# the checkout there, that folder included, and run benchmarks/gpu_hour.sh.
# benchmarks/gpu_wheels.sh [--python 3.12] [--out FOLDER]
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks.gpu_hour.wheels "$@"
