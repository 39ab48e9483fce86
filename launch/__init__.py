"""Starting a run's ranks: by torchrun, deepspeed, srun, sbatch or mpirun, on one node or many.

`plan.py` says what would be started, `run.py` starts it, passes signals on and shows the first failure. The scripts
beside them (`torchrun.sh`, `deepspeed.sh`, `mpirun.sh`, `slurm/*.sbatch`) do the same by hand, to be edited.
"""
