"""One GPU and ten minutes: what of the claims a machine with a GPU and nothing else can show.

`benchmarks/gpu_wheels.sh` collects what such a machine lacks, `benchmarks/gpu_hour.sh` runs there, and
`fmscale bench --read FOLDER` puts what came of it into `benchmarks/results/` and the README.
"""
