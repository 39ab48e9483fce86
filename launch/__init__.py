"""Starts a run's ranks: by itself on one node, and by torchrun, deepspeed, srun, sbatch or mpirun on many.

- `launch.py`  the request, the `Launch` (one command and its environment), and a port where ranks can meet
- `hostfile.py`  hosts and their slots
- `programs.py`  paths of the programs of a launch, and the packages that have them
- `environment.py`  variables that every rank gets
- `local.py`, `torchrun.py`, `deepspeed.py`, `mpirun.py`, `srun.py`  a launch by each launcher
- `over_ssh.py`  deepspeed's launcher on other hosts, apart from other runs there
- `launchers.py`  launchers by name
- `agent.py`  parent of the ranks that `local` starts
- `sweep.py`  runs over values of config keys
- `rendezvous.py`  the meeting of torchrun's agents
- `elastic.py`  the meeting of torchrun's agents where nodes come and go
- `signals.py`  signals to ranks, and the end of a tree of processes
- `run.py`  starts a launch, passes signals on and waits for its end

Scripts for users to edit (`torchrun.sh`, `deepspeed.sh`, `mpirun.sh`, `slurm/*.sbatch`) do the same by hand, and
`kubernetes/` and `skypilot/` have manifests that call `fmscale launch` on each node.
"""
