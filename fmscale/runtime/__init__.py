"""Ranks of a run: their place, meeting, waits, stops and failures, and the files and lines of their metrics.

`world.py`       place of this process, from its launcher's variables
`axes.py`        groups of ranks, an axis for each kind of work
`device.py`      device of this rank
`placement.py`   its cores, and its folder of compiled kernels
`tcp_store.py`   key-value store that listens at one address
`mpi.py`         MPI of the ranks that an mpirun started
`group.py`       brings the ranks together
`variables.py`   variables of the environment, lent to libraries for a run
`late_values.py` values that are not there yet, waited for in a thread
`waits.py`       named, timed waits of the ranks for one another
`peers.py`       ranks of this machine as processes
`watchdog.py`    thread that hears of other ranks' ends, and tells where ranks are if no step ends
`watched.py`     states of all ranks in one file, and in a sentence
`collectives.py` numbers that ranks exchange in a step
`stop.py`        stop by a signal or a deadline
`draw.py`        random numbers as a function of seed, purpose and counters
`failure.py`     the first rank to fail, in error.json
`record_file.py` file that grows by whole records, on a disk that may be full
`sinks/`         metrics: a file for machines, a terminal for people, and services for both
`provenance.py`  machine, versions and source behind a report's numbers
"""
