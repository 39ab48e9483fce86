"""Claims that a machine with one GPU and no network can check in ten minutes.

`benchmarks/gpu_wheels.sh` collects the packages that such a machine lacks, `benchmarks/gpu_hour.sh` runs there, and
`fmscale bench --read FOLDER` puts the results into `benchmarks/results/` and the README.
"""
