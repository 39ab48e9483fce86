"""A look at this machine, and at the links between the ranks' machines, for `fmscale doctor`.

It makes the user's folder for compiled kernels and keeps the result of the kernels' self-test; it changes nothing else.

- `finding.py`   a line of the examination
- `host.py`   limits, shared memory, name, disks and clock: a rank needs them, and they fail late
- `software.py`   GPUs, communication, kernels, compilers, MPI
- `links.py`   latency and bandwidth between ranks, and nodes that do not reach each other
- `examine.py`   the whole examination, alone or on all ranks
"""
